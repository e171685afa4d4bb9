// MOFO_ADDRESS_SANITIZER: whether this is compiled with it.

#ifndef MOFO_EMULATION_SANITIZER_HPP
#define MOFO_EMULATION_SANITIZER_HPP

#if defined(__SANITIZE_ADDRESS__)
#define MOFO_ADDRESS_SANITIZER 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define MOFO_ADDRESS_SANITIZER 1
#endif
#endif

#endif
