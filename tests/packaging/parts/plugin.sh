# A program that links mofo statically loads a plug-in that has a copy of its own.

mofo=$tree/$where/libmofo.a
include=$tree/include/there

building_plugins() {
    c -I "$include" -shared -fPIC "$here/plugin.c" "$mofo" -lpthread -ldl -lm -o "$scratch/plugin.so"
    c -I "$include" -shared -fPIC "$here/plugin.c" "$mofo" -Wl,--exclude-libs,libmofo.a -lpthread -ldl -lm -o "$scratch/closed.so"
    exported=$(nm -D --defined-only "$scratch/closed.so" | awk '{ print $NF }' | grep -v '^plugin_' || true)
    same "$exported" ""
}

hosting() {
    plugin=$1
    shift
    c -I "$include" "$@" "$here/host.c" "$mofo" -lpthread -ldl -lm -o "$scratch/host"
    "$scratch/host" "$plugin"
}

under_valgrind() {
    hosting "$scratch/plugin.so"
    valgrind --quiet --error-exitcode=99 "$scratch/host" "$scratch/plugin.so"
}

try "plug-ins with a static mofo" building_plugins
try "a host and its plug-in, each with a static mofo" hosting "$scratch/plugin.so"
# A host that exports its symbols would lend the plug-in its own copy, if the plug-in had not kept its symbols to itself.
try "a host that exports its symbols" hosting "$scratch/closed.so" -rdynamic
if needs "a host and its plug-in under valgrind" valgrind; then
    try "a host and its plug-in under valgrind" under_valgrind
fi
