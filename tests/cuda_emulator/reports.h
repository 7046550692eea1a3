// What was found, one line each, for reports.py.
#ifndef XPCONV_EMULATOR_REPORTS_H
#define XPCONV_EMULATOR_REPORTS_H
#include "runtime.h"

namespace emulator HIDDEN {

void start_reports();
void report(const char* kind, const Site& site, const char* format, ...) __attribute__((format(printf, 3, 4)));
bool too_many_reports();  // so many that going on is a waste of time

}  // namespace emulator
#endif
