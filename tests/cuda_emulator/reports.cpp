#include "reports.h"

#include <cstdarg>
#include <cstdio>
#include <map>
#include <string>

namespace emulator {
namespace {

constexpr int MOST_LINES = 20, MOST_OF_A_KIND = 4, TOO_MANY = 100000;
std::string report_text;
int report_lines, report_count;
std::map<std::pair<std::string, std::pair<const void*, int>>, int> seen;  // by kind and place

std::string heading(const char* kind) {
    char text[128];
    const uint3 at = block.index;
    std::snprintf(text, sizeof text, "[%s] block (%u,%u,%u)", kind, at.x, at.y, at.z);
    return text + (current ? " thread " + std::to_string(current->number) + ": " : ": ");
}

// A place without a line is an offset in the kernel's library, of the call before the address that it returns to.
std::string place_of(const Site& site) {
    char text[256] = "";
    if (site.file)
        std::snprintf(text, sizeof text, " at %s:%d", site.file, site.line);
    else if (site.address)
        std::snprintf(text, sizeof text, " at @%#zx@",
                      size_t(static_cast<const char*>(site.address) - launch.library_begin - 1));
    return text;
}

}  // namespace

void start_reports() {
    report_text.clear();
    report_lines = report_count = 0;
    seen.clear();
}

bool too_many_reports() { return report_count > TOO_MANY; }

void report(const char* kind, const Site& site, const char* format, ...) {
    ++report_count;
    const std::pair<const void*, int> place{site.file ? site.file : site.address, site.line};
    if (++seen[{kind, place}] > MOST_OF_A_KIND) return;
    if (report_lines == MOST_LINES) return;
    ++report_lines;
    char text[640];
    va_list values;
    va_start(values, format);
    std::vsnprintf(text, sizeof text, format, values);
    va_end(values);
    report_text += heading(kind) + text + place_of(site) + "\n";
}

}  // namespace emulator

extern "C" const char* emulator_reports() { return emulator::report_text.c_str(); }
extern "C" int emulator_report_count() { return emulator::report_count; }
