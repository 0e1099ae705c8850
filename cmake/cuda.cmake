# Decides whether the CUDA kernels (csrc/cuda/*.cu) are built, and for which architectures.
#   off   never
#   on    always, for FRANCA_FAST_CUDA_ARCHS or sm_80, sm_90a and sm_100; no nvcc is an error
#   auto  when nvcc is found and a GPU is visible, for that GPU

file(GLOB FRANCA_CUDA_SOURCES CONFIGURE_DEPENDS ${CMAKE_CURRENT_SOURCE_DIR}/csrc/cuda/*.cu)
set(FRANCA_CUDA_BUILT OFF)

if(NOT FRANCA_FAST_CUDA MATCHES "^(auto|on|off)$")
  message(FATAL_ERROR "FRANCA_FAST_CUDA=${FRANCA_FAST_CUDA} is not one of: auto, on, off")
endif()

if(FRANCA_FAST_CUDA STREQUAL "off")
  message(STATUS "CUDA kernels: off")
  return()
endif()
if(NOT FRANCA_CUDA_SOURCES)
  message(STATUS "CUDA kernels: none in csrc/cuda")
  return()
endif()

include(CheckLanguage)
check_language(CUDA)
if(FRANCA_FAST_CUDA STREQUAL "auto")
  if(NOT CMAKE_CUDA_COMPILER)
    message(STATUS "CUDA kernels: not built, nvcc was not found")
    return()
  endif()
  execute_process(COMMAND nvidia-smi -L OUTPUT_VARIABLE FRANCA_GPUS ERROR_QUIET
                  RESULT_VARIABLE FRANCA_NO_GPU)
  if(NOT FRANCA_NO_GPU EQUAL 0 OR FRANCA_GPUS STREQUAL "")
    message(STATUS "CUDA kernels: not built, no GPU is visible (FRANCA_FAST_CUDA=on builds them)")
    return()
  endif()
  set(FRANCA_CUDA_DEFAULT_ARCHS native)
else()
  if(NOT CMAKE_CUDA_COMPILER)
    message(FATAL_ERROR "FRANCA_FAST_CUDA=on, but nvcc was not found")
  endif()
  set(FRANCA_CUDA_DEFAULT_ARCHS 80-real 90a-real 100-real)
endif()

set(CMAKE_CUDA_ARCHITECTURES ${FRANCA_CUDA_DEFAULT_ARCHS})
if(FRANCA_FAST_CUDA_ARCHS)
  string(REPLACE "," ";" CMAKE_CUDA_ARCHITECTURES "${FRANCA_FAST_CUDA_ARCHS}")
endif()
set(CMAKE_CUDA_STANDARD 17)
set(CMAKE_CUDA_STANDARD_REQUIRED ON)
set(CMAKE_CUDA_RUNTIME_LIBRARY Static)
enable_language(CUDA)
# Compute capability 9.0 stands for 9.0a: Hopper's matrix instructions are the latter's only.
if(CMAKE_CUDA_ARCHITECTURES STREQUAL "native" AND CMAKE_CUDA_ARCHITECTURES_NATIVE)
  set(CMAKE_CUDA_ARCHITECTURES ${CMAKE_CUDA_ARCHITECTURES_NATIVE})
endif()
list(TRANSFORM CMAKE_CUDA_ARCHITECTURES REPLACE "^90(-.*)?$" "90a\\1")

add_library(franca_cuda STATIC ${FRANCA_CUDA_SOURCES})
target_include_directories(franca_cuda PRIVATE csrc csrc/include)
target_compile_options(franca_cuda PRIVATE -Xcompiler=-Wall,-Wextra -Xptxas=-v,-warn-spills)
# Not for users: a compiler that nobody here has tried may warn of what is right, and may spill.
if(FRANCA_FAST_WERROR)
  target_compile_options(franca_cuda PRIVATE -Werror=all-warnings -Xcompiler=-Werror)
  set(FRANCA_STRICT --strict)
endif()
# A table of registers, shared and local memory in the build log.
find_package(Python COMPONENTS Interpreter)
if(Python_Interpreter_FOUND)
  set(FRANCA_LAUNCHER ${Python_EXECUTABLE} ${CMAKE_CURRENT_LIST_DIR}/ptxas_table.py
                      ${FRANCA_STRICT})
  set_target_properties(franca_cuda PROPERTIES CUDA_COMPILER_LAUNCHER "${FRANCA_LAUNCHER}")
endif()
target_link_libraries(franca_core PUBLIC franca_cuda)
target_compile_definitions(franca_core PUBLIC FRANCA_CUDA)
set(FRANCA_CUDA_BUILT ON)
message(STATUS "CUDA kernels: ${CMAKE_CUDA_ARCHITECTURES}")
