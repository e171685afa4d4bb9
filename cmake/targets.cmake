# mofo::shared, mofo::static and mofo::mofo, for the projects that this one is a part of.

# Each configuration has its folder where the generator knows many.
function(mofo_set_locations target property file)
  if(MOFO_MULTI_CONFIG)
    foreach(config IN LISTS CMAKE_CONFIGURATION_TYPES)
      string(TOUPPER "${config}" upper)
      set_property(TARGET ${target} PROPERTY ${property}_${upper} "${CMAKE_CURRENT_BINARY_DIR}/lib/${config}/${file}")
    endforeach()
  else()
    set_property(TARGET ${target} PROPERTY ${property} "${CMAKE_CURRENT_BINARY_DIR}/lib/${file}")
  endif()
endfunction()

add_library(mofo::static STATIC IMPORTED GLOBAL)
mofo_set_locations(mofo::static IMPORTED_LOCATION ${MOFO_STATIC})
set_target_properties(mofo::static PROPERTIES
  IMPORTED_LINK_INTERFACE_LANGUAGES C
  INTERFACE_LINK_LIBRARIES "${MOFO_SYSTEM_LIBRARIES}"
  INTERFACE_INCLUDE_DIRECTORIES "${CMAKE_CURRENT_SOURCE_DIR}/include")
add_dependencies(mofo::static mofo_build)

if(MOFO_HAS_SHARED)
  add_library(mofo::shared SHARED IMPORTED GLOBAL)
  mofo_set_locations(mofo::shared IMPORTED_LOCATION ${MOFO_SHARED})
  if(MOFO_IMPLIB)
    mofo_set_locations(mofo::shared IMPORTED_IMPLIB ${MOFO_IMPLIB})
  endif()
  set_target_properties(mofo::shared PROPERTIES
    IMPORTED_SONAME "${MOFO_SONAME}"
    INTERFACE_INCLUDE_DIRECTORIES "${CMAKE_CURRENT_SOURCE_DIR}/include")
  add_dependencies(mofo::shared mofo_build)
endif()

if(DEFINED mofo_USE_STATIC_LIBS)
  set(MOFO_USE_STATIC "${mofo_USE_STATIC_LIBS}")
elseif(NOT MOFO_HAS_SHARED OR (DEFINED BUILD_SHARED_LIBS AND NOT BUILD_SHARED_LIBS))
  set(MOFO_USE_STATIC ON)
else()
  set(MOFO_USE_STATIC OFF)
endif()
if(NOT MOFO_USE_STATIC AND NOT MOFO_HAS_SHARED)
  message(FATAL_ERROR "Rust makes no shared library for ${MOFO_PLATFORM}")
endif()
add_library(mofo::mofo INTERFACE IMPORTED GLOBAL)
if(MOFO_USE_STATIC)
  set_property(TARGET mofo::mofo PROPERTY INTERFACE_LINK_LIBRARIES mofo::static)
else()
  set_property(TARGET mofo::mofo PROPERTY INTERFACE_LINK_LIBRARIES mofo::shared)
endif()
