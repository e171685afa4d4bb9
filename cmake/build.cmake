# The target mofo_build, which runs cargo, and the folder where the libraries then are.

get_property(MOFO_MULTI_CONFIG GLOBAL PROPERTY GENERATOR_IS_MULTI_CONFIG)
set(MOFO_LIBRARIES "${CMAKE_CURRENT_BINARY_DIR}/lib")
if(MOFO_MULTI_CONFIG)
  string(APPEND MOFO_LIBRARIES "/$<CONFIG>")
endif()

set(MOFO_FEATURES "")
if(NOT MOFO_CUDA)
  set(MOFO_FEATURES --no-default-features)
endif()
set(MOFO_KINDS staticlib)
set(MOFO_RUSTC_OPTIONS "")
if(MOFO_HAS_SHARED)
  set(MOFO_KINDS cdylib,staticlib)
  if(MOFO_NAME_ARGUMENT)
    set(MOFO_RUSTC_OPTIONS -- -C link-arg=${MOFO_NAME_ARGUMENT})
    # Clang builds for many platforms, and must be told here too.
    if(CMAKE_C_COMPILER_TARGET)
      list(APPEND MOFO_RUSTC_OPTIONS -C link-arg=--target=${CMAKE_C_COMPILER_TARGET})
    endif()
    if(CMAKE_SYSROOT)
      list(APPEND MOFO_RUSTC_OPTIONS -C link-arg=--sysroot=${CMAKE_SYSROOT})
    endif()
  endif()
endif()

set(MOFO_ENVIRONMENT "$<$<CONFIG:RelWithDebInfo>:CARGO_PROFILE_RELEASE_DEBUG=true>")
# Elsewhere cargo links with the compiler of the project, where it has not been told otherwise.
string(TOUPPER "CARGO_TARGET_${MOFO_PLATFORM}_LINKER" MOFO_LINKER)
string(REPLACE "-" "_" MOFO_LINKER "${MOFO_LINKER}")
if(NOT MOFO_PLATFORM STREQUAL MOFO_HOST AND NOT MSVC AND NOT DEFINED ENV{${MOFO_LINKER}})
  list(APPEND MOFO_ENVIRONMENT "${MOFO_LINKER}=${CMAKE_C_COMPILER}")
endif()

# As Cargo calls the folder: that of the profile `dev` is `debug`.
set(MOFO_BUILT "${CMAKE_CURRENT_BINARY_DIR}/cargo/${MOFO_PLATFORM}/$<IF:$<CONFIG:Debug>,debug,release>")
# Locked: the dependencies are those that were tested, and the sources, which may be an engine's own, stay as they are.
set(MOFO_COMMANDS
  COMMAND "${CMAKE_COMMAND}" -E env ${MOFO_ENVIRONMENT}
    "${MOFO_CARGO}" rustc --locked --manifest-path "${CMAKE_CURRENT_SOURCE_DIR}/Cargo.toml" --lib --crate-type ${MOFO_KINDS}
    --profile "$<IF:$<CONFIG:Debug>,dev,release>" --target-dir "${CMAKE_CURRENT_BINARY_DIR}/cargo"
    --target ${MOFO_PLATFORM} ${MOFO_FEATURES} ${MOFO_RUSTC_OPTIONS}
  COMMAND "${CMAKE_COMMAND}" -E make_directory "${MOFO_LIBRARIES}")
set(MOFO_BYPRODUCTS "${MOFO_LIBRARIES}/${MOFO_STATIC}")

if(MOFO_HAS_SHARED)
  list(APPEND MOFO_COMMANDS
    COMMAND "${CMAKE_COMMAND}" -E copy_if_different "${MOFO_BUILT}/${MOFO_SHARED_BUILT}" "${MOFO_LIBRARIES}/${MOFO_SHARED}")
  list(APPEND MOFO_BYPRODUCTS "${MOFO_LIBRARIES}/${MOFO_SHARED}")
  foreach(MOFO_LINK IN LISTS MOFO_LINKS)
    list(APPEND MOFO_COMMANDS
      COMMAND "${CMAKE_COMMAND}" -E create_symlink "${MOFO_SHARED}" "${MOFO_LIBRARIES}/${MOFO_LINK}")
  endforeach()
  if(MOFO_IMPLIB)
    list(APPEND MOFO_COMMANDS
      COMMAND "${CMAKE_COMMAND}" -E copy_if_different "${MOFO_BUILT}/${MOFO_IMPLIB}" "${MOFO_LIBRARIES}/${MOFO_IMPLIB}")
    list(APPEND MOFO_BYPRODUCTS "${MOFO_LIBRARIES}/${MOFO_IMPLIB}")
  endif()
endif()

if(CMAKE_HOST_WIN32)
  list(APPEND MOFO_COMMANDS
    COMMAND "${CMAKE_COMMAND}" -E copy_if_different "${MOFO_BUILT}/${MOFO_STATIC_BUILT}" "${MOFO_LIBRARIES}/${MOFO_STATIC}")
else()
  # The compiler may need to be told the platform, its folder of system files and, on macOS, the processor.
  set(MOFO_COMPILER "${CMAKE_C_COMPILER}")
  if(CMAKE_C_COMPILER_TARGET)
    string(APPEND MOFO_COMPILER " --target=${CMAKE_C_COMPILER_TARGET}")
  endif()
  foreach(MOFO_ARCHITECTURE IN LISTS CMAKE_OSX_ARCHITECTURES)
    string(APPEND MOFO_COMPILER " -arch ${MOFO_ARCHITECTURE}")
  endforeach()
  set(MOFO_TOOLS "CC=${MOFO_COMPILER}" "RUSTC=${MOFO_RUSTC}"
    "KEEP_DEBUG=$<IF:$<OR:$<CONFIG:Debug>,$<CONFIG:RelWithDebInfo>>,1,0>")
  foreach(MOFO_TOOL IN ITEMS OBJCOPY READELF NM AR)
    if(CMAKE_${MOFO_TOOL})
      list(APPEND MOFO_TOOLS "${MOFO_TOOL}=${CMAKE_${MOFO_TOOL}}")
    endif()
  endforeach()
  list(APPEND MOFO_COMMANDS
    COMMAND "${CMAKE_COMMAND}" -E env ${MOFO_TOOLS} "${CMAKE_CURRENT_SOURCE_DIR}/packaging/static-library.sh"
      "${MOFO_BUILT}/${MOFO_STATIC_BUILT}" "${MOFO_LIBRARIES}/${MOFO_STATIC}" ${MOFO_PLATFORM})
endif()

# A part of `all` only where it is the project itself, or installed.
set(MOFO_ALL "")
if(MOFO_INSTALL)
  set(MOFO_ALL ALL)
  if(NOT CMAKE_HOST_WIN32)
    list(APPEND MOFO_COMMANDS
      COMMAND "${CMAKE_COMMAND}" -E env "CARGO=${MOFO_CARGO}" "RUSTC=${MOFO_RUSTC}"
        "${CMAKE_CURRENT_SOURCE_DIR}/packaging/third-party.sh" ${MOFO_PLATFORM} ${MOFO_FEATURES} > "${MOFO_LIBRARIES}/LICENSE-THIRD-PARTY")
  endif()
endif()

# Always run: cargo knows what has changed, and files that are the same keep their dates.
add_custom_target(mofo_build ${MOFO_ALL} ${MOFO_COMMANDS}
  BYPRODUCTS ${MOFO_BYPRODUCTS}
  COMMENT "mofo: cargo builds the library"
  COMMAND_EXPAND_LISTS VERBATIM)
