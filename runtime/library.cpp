// Gives the shared object a translation unit of its own; everything in it comes from the layers' archives.
#include <jalapeno/jalapeno.h>

static_assert(sizeof(jalTensor) == 64 && sizeof(jalArg) == 72, "part of the ABI");
