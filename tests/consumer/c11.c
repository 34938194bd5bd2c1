/* The C header by itself, as C11. */
#include <jalapeno/jalapeno.h>

int version_from_c(void) { return jalGetVersion(); }
