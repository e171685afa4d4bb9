# What the libraries define: the functions of the header, and nothing else.

functions() { sed 's|/\*.*\*/||' include/mofo.h | grep -v '^ \*\|^    \*' | grep -o 'mofo_[a-z0-9_]*(' | tr -d '(' | LC_ALL=C sort -u; }

of_static() {
    defined=$(nm -g --defined-only "$tree/$where/libmofo.a" | awk 'NF == 3 { print $3 }' | LC_ALL=C sort)
    [ "$(functions | wc -l)" -gt 15 ]
    same "$defined" "$(functions)"
}

of_shared() {
    defined=$(nm -D --defined-only "$tree/$where/libmofo.so" | awk '{ print $NF }' | LC_ALL=C sort)
    same "$defined" "$(functions)"
}

# Of two groups of one name a linker drops the second, whose symbols are local here.
no_groups() { readelf -gW "$tree/$where/libmofo.a" | grep -q 'no section groups'; }

try "the static library defines the header's functions alone" of_static
try "the shared library exports the header's functions alone" of_shared
try "the static library has no section groups" no_groups
