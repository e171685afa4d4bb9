// CUDA's vector types, with the sizes and alignments that CUDA gives them.

#ifndef MOFO_EMULATION_VECTORS_HPP
#define MOFO_EMULATION_VECTORS_HPP

#define MOFO_VECTOR2(name, type, alignment)                                                                  \
    struct alignas(alignment) name {                                                                         \
        type x, y;                                                                                           \
    };                                                                                                       \
    inline name make_##name(type x, type y) { return {x, y}; }

#define MOFO_VECTOR3(name, type)                                                                             \
    struct name {                                                                                            \
        type x, y, z;                                                                                        \
    };                                                                                                       \
    inline name make_##name(type x, type y, type z) { return {x, y, z}; }

#define MOFO_VECTOR4(name, type, alignment)                                                                  \
    struct alignas(alignment) name {                                                                         \
        type x, y, z, w;                                                                                     \
    };                                                                                                       \
    inline name make_##name(type x, type y, type z, type w) { return {x, y, z, w}; }

MOFO_VECTOR2(uchar2, unsigned char, 2)
MOFO_VECTOR2(short2, short, 4)
MOFO_VECTOR2(ushort2, unsigned short, 4)
MOFO_VECTOR2(int2, int, 8)
MOFO_VECTOR2(uint2, unsigned, 8)
MOFO_VECTOR2(longlong2, long long, 16)
MOFO_VECTOR2(ulonglong2, unsigned long long, 16)
MOFO_VECTOR2(float2, float, 8)
MOFO_VECTOR2(double2, double, 16)
MOFO_VECTOR3(int3, int)
MOFO_VECTOR3(uint3, unsigned)
MOFO_VECTOR3(float3, float)
MOFO_VECTOR4(uchar4, unsigned char, 4)
MOFO_VECTOR4(short4, short, 8)
MOFO_VECTOR4(ushort4, unsigned short, 8)
MOFO_VECTOR4(int4, int, 16)
MOFO_VECTOR4(uint4, unsigned, 16)
MOFO_VECTOR4(float4, float, 16)

#undef MOFO_VECTOR2
#undef MOFO_VECTOR3
#undef MOFO_VECTOR4

struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

#endif
