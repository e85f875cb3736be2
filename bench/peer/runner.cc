// The peer as functions that the simulator calls: boot (memory, constructors, interpreter), then one inference at a time.
// Serves today's TFLite Micro, whose resolver has a method for each operator, and that of 2020, which took registrations.
#include <cstddef>
#include <cstdint>

#include "tensorflow/lite/micro/micro_interpreter.h"
#include "tensorflow/lite/micro/micro_mutable_op_resolver.h"
#include "tensorflow/lite/schema/schema_generated.h"
#if __has_include("tensorflow/lite/micro/micro_log.h")
#define TODAY 1
#else
#include "tensorflow/lite/micro/kernels/micro_ops.h"
#include "tensorflow/lite/micro/micro_error_reporter.h"
#endif

extern "C" {
extern const unsigned char peer_model[];
extern char flash_data[], ram_data[], ram_data_end[], bss_begin[], bss_end[];
extern void (*constructors_begin[])(), (*constructors_end[])();
alignas(16) unsigned char peer_arena[PEER_ARENA_BYTES];
void *__dso_handle = nullptr;

static tflite::MicroInterpreter *interpreter;

static int open_model()
{
    static tflite::MicroMutableOpResolver<8> resolver;
    const tflite::Model *model = tflite::GetModel(peer_model);
#ifdef TODAY
    resolver.AddAdd();
    resolver.AddAveragePool2D();
    resolver.AddConv2D();
    resolver.AddDepthwiseConv2D();
    resolver.AddFullyConnected();
    resolver.AddReshape();
    resolver.AddSoftmax();
    static tflite::MicroInterpreter made(model, resolver, peer_arena, sizeof peer_arena);
#else
    using namespace tflite::ops::micro;
    resolver.AddBuiltin(tflite::BuiltinOperator_ADD, Register_ADD(), 1, 4);
    resolver.AddBuiltin(tflite::BuiltinOperator_AVERAGE_POOL_2D, Register_AVERAGE_POOL_2D(), 1, 4);
    resolver.AddBuiltin(tflite::BuiltinOperator_CONV_2D, Register_CONV_2D(), 1, 5);
    resolver.AddBuiltin(tflite::BuiltinOperator_DEPTHWISE_CONV_2D, Register_DEPTHWISE_CONV_2D(), 1, 5);
    resolver.AddBuiltin(tflite::BuiltinOperator_FULLY_CONNECTED, Register_FULLY_CONNECTED(), 1, 9);
    resolver.AddBuiltin(tflite::BuiltinOperator_RESHAPE, Register_RESHAPE(), 1, 4);
    resolver.AddBuiltin(tflite::BuiltinOperator_SOFTMAX, Register_SOFTMAX(), 1, 4);
    static tflite::MicroErrorReporter reporter;
    static tflite::MicroInterpreter made(model, resolver, peer_arena, sizeof peer_arena, &reporter);
#endif
    interpreter = &made;
    return interpreter->AllocateTensors() == kTfLiteOk ? 0 : 1;
}

int peer_boot()
{
    for (ptrdiff_t at = 0; at < ram_data_end - ram_data; at++) ram_data[at] = flash_data[at];
    for (char *at = bss_begin; at < bss_end; at++) *at = 0;
    for (auto each = constructors_begin; each < constructors_end; each++) (*each)();
    return open_model();
}

int peer_invoke() { return interpreter->Invoke() == kTfLiteOk ? 0 : 1; }
void *peer_input() { return interpreter->input(0)->data.int8; }
void *peer_output() { return interpreter->output(0)->data.int8; }
uint32_t peer_arena_used() { return interpreter->arena_used_bytes(); }
}

#ifdef TODAY
extern "C" void DebugLog(const char *, va_list) {}
#else
extern "C" void DebugLog(const char *) {}
#endif
