// How a launch reaches a kernel: unpacks the arguments for one thread, and describes them to module.py.
#ifndef XPCONV_EMULATOR_ENTRY_H
#define XPCONV_EMULATOR_ENTRY_H

// The bounds of this library, by which the runtime tells a table of constants from a stray pointer.
extern "C" const char __ehdr_start __attribute__((visibility("hidden")));
extern "C" const char _end __attribute__((visibility("hidden")));

template <unsigned... INDEX>
struct emulator_indices {};
template <unsigned COUNT>
using emulator_index_range = emulator_indices<__integer_pack(COUNT)...>;

// A parameter's kind, as module.py spells it: pointer, integer, floating number or anything else (a struct).
template <class T>
struct emulator_kind {
    static constexpr char value = __is_class(T) || __is_union(T) ? 's' : 'i';
};
template <class T>
struct emulator_kind<T*> {
    static constexpr char value = 'p';
};
template <>
struct emulator_kind<float> {
    static constexpr char value = 'f';
};
template <>
struct emulator_kind<double> {
    static constexpr char value = 'f';
};
template <class T>
struct emulator_unqualified {
    using type = T;
};
template <class T>
struct emulator_unqualified<const T> {
    using type = T;
};

template <class T>
EMULATOR_NOT_INSTRUMENTED T emulator_argument(const void* address) {
    T value;
    __builtin_memcpy(&value, address, sizeof value);
    return value;
}

template <class... P>
struct emulator_kernel {
    void (*function)(P...);
    void** arguments;

    template <unsigned... I>
    EMULATOR_NOT_INSTRUMENTED void call(emulator_indices<I...>) {
        function(emulator_argument<typename emulator_unqualified<P>::type>(arguments[I])...);
    }
    EMULATOR_NOT_INSTRUMENTED static void run(void* self) {
        static_cast<emulator_kernel*>(self)->call(emulator_index_range<sizeof...(P)>());
    }
};

template <class... P>
EMULATOR_NOT_INSTRUMENTED void emulator_start(void (*function)(P...), emulator_launch_request* request,
                                              void** arguments) {
    emulator_kernel<P...> kernel{function, arguments};
    request->entry = &emulator_kernel<P...>::run;
    request->argument = &kernel;
    request->library_begin = &__ehdr_start;
    request->library_end = &_end;
    emulator_launch(request);
}

// One number a parameter: its size times 256 plus its kind; a zero ends the list.
template <class... P>
const unsigned* emulator_signature(void (*)(P...)) {
    static const unsigned entries[] = {
        (unsigned)(sizeof(P) * 256 + emulator_kind<typename emulator_unqualified<P>::type>::value)..., 0};
    return entries;
}

#endif
