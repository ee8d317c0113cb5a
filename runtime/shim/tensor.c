/* DLTensors: sizes, strides, and checks against the model's signature. */

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "shim.h"

size_t abqc_item_size(DLDataType dtype) { return ((size_t)dtype.bits * dtype.lanes + 7) / 8; }

void abqc_compact_strides(int32_t rank, const int64_t *sizes, int64_t *strides) {
    int64_t stride = 1;
    for (int32_t d = rank - 1; d >= 0; d--) {
        strides[d] = stride;
        stride *= sizes[d];
    }
}

bool abqc_is_compact(int32_t rank, const int64_t *sizes, const int64_t *strides) {
    int64_t stride = 1;
    for (int32_t d = 0; d < rank; d++)
        if (sizes[d] == 0) return true;
    for (int32_t d = rank - 1; d >= 0; d--) {
        if (sizes[d] != 1 && strides[d] != stride) return false;
        stride *= sizes[d];
    }
    return true;
}

int64_t abqc_byte_count(int32_t rank, const int64_t *sizes, size_t item) {
    int64_t bytes = (int64_t)item;
    bool empty = false;
    for (int32_t d = 0; d < rank; d++) {
        if (sizes[d] < 0) return -1;
        if (sizes[d] == 0) empty = true;
        else if (__builtin_mul_overflow(bytes, sizes[d], &bytes) || bytes > ABQC_MAX_BYTES)
            return -1;
    }
    return empty ? 0 : bytes;
}

void abqc_view_of(const DLTensor *tensor, abqc_view *view) {
    view->data = tensor->data ? (char *)tensor->data + tensor->byte_offset : NULL;
    abqc_compact_strides(tensor->ndim, tensor->shape, view->strides);
    for (int32_t d = 0; d < tensor->ndim; d++) {
        view->sizes[d] = tensor->shape[d];
        if (tensor->strides) view->strides[d] = tensor->strides[d];
    }
}

void abqc_span(const DLTensor *tensor, uintptr_t *begin, uintptr_t *end) {
    abqc_view view;
    int64_t low = 0, high = 0, item = (int64_t)abqc_item_size(tensor->dtype);
    abqc_view_of(tensor, &view);
    *begin = *end = (uintptr_t)view.data;
    for (int32_t d = 0; d < tensor->ndim; d++) {
        if (view.sizes[d] == 0) return;
        int64_t reach = (view.sizes[d] - 1) * view.strides[d];
        *(reach < 0 ? &low : &high) += reach;
    }
    *begin += (uintptr_t)(low * item);
    *end += (uintptr_t)((high + 1) * item);
}

bool abqc_overlap(const DLTensor *a, const DLTensor *b) {
    uintptr_t a_begin, a_end, b_begin, b_end;
    if (abqc_on_gpu(a) != abqc_on_gpu(b)) return false;
    abqc_span(a, &a_begin, &a_end);
    abqc_span(b, &b_begin, &b_end);
    return a_begin < b_end && b_begin < a_end;
}

static const char *format_dtype(DLDataType dtype, char *text, size_t length) {
    static const char *const names[] = {"int", "uint", "float", "opaque", "bfloat", "complex"};
    static const char *const small[] = {"float8_e3m4", "float8_e4m3", "float8_e4m3b11fnuz",
                                        "float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2",
                                        "float8_e5m2fnuz", "float8_e8m0fnu", "float6_e2m3fn",
                                        "float6_e3m2fn", "float4_e2m1fn"};
    if (dtype.code == kDLBool) return "bool";
    if (dtype.lanes == 1 && dtype.code >= kDLFloat8_e3m4 && dtype.code <= kDLFloat4_e2m1fn)
        return small[dtype.code - kDLFloat8_e3m4];
    const char *name = dtype.code < 6 ? names[dtype.code] : "type";
    if (dtype.lanes == 1) snprintf(text, length, "%s%d", name, dtype.bits);
    else snprintf(text, length, "%s%dx%d", name, dtype.bits, dtype.lanes);
    return text;
}

const char *abqc_format_sizes(int32_t rank, const int64_t *sizes, char *text, size_t length) {
    size_t at = (size_t)snprintf(text, length, "[");
    for (int32_t d = 0; d < rank && at < length; d++)
        at += (size_t)snprintf(text + at, length - at, "%s%" PRId64, d ? ", " : "", sizes[d]);
    if (at < length) snprintf(text + at, length - at, "]");
    return text;
}

/* Can all elements lie in one address space? Whether they lie in the caller's memory only the caller
 * knows. */
static bool strides_are_possible(const DLTensor *tensor) {
    int64_t item = (int64_t)abqc_item_size(tensor->dtype), total = 0;
    if (tensor->byte_offset > (uint64_t)ABQC_MAX_BYTES) return false;
    for (int32_t d = 0; d < tensor->ndim && tensor->strides; d++) {
        int64_t stride = tensor->strides[d], reach;
        if (stride < -ABQC_MAX_BYTES || stride > ABQC_MAX_BYTES ||
            __builtin_mul_overflow(stride < 0 ? -stride : stride, tensor->shape[d] - 1, &reach) ||
            __builtin_mul_overflow(reach, item, &reach) ||
            __builtin_add_overflow(total, reach, &total) || total > ABQC_MAX_BYTES)
            return false;
    }
    return true;
}

/* What inputs and handed-in outputs have in common: device, type, rank, data. */
static int32_t check_tensor(const abqc_device *device, int32_t status, const char *role,
                            const abqc_tensor_info *info, const DLTensor *tensor) {
    char got[32], expected[32];
    if (!tensor) return abqc_error(status, "%s '%s' is missing", role, info->name);
    int32_t place = abqc_check_place(device, tensor->device, role, info->name);
    if (place) return place;
    if (memcmp(&tensor->dtype, &info->dtype, sizeof(DLDataType)) != 0)
        return abqc_error(status, "%s '%s' is %s, expected %s", role, info->name,
                          format_dtype(tensor->dtype, got, sizeof got),
                          format_dtype(info->dtype, expected, sizeof expected));
    if (tensor->ndim != info->ndim)
        return abqc_error(status, "%s '%s' has rank %d, expected %d", role, info->name,
                          (int)tensor->ndim, (int)info->ndim);
    if (tensor->ndim > 0 && !tensor->shape)
        return abqc_error(status, "%s '%s' has no shape", role, info->name);
    int64_t bytes = abqc_byte_count(tensor->ndim, tensor->shape, abqc_item_size(tensor->dtype));
    if (bytes < 0)
        return abqc_error(status, "%s '%s' has an impossible size", role, info->name);
    if (bytes > 0 && !tensor->data)
        return abqc_error(status, "%s '%s' has no data", role, info->name);
    if (bytes > 0 && !strides_are_possible(tensor))
        return abqc_error(status, "%s '%s' has impossible strides", role, info->name);
    return ABQC_OK;
}

static int32_t check_static_sizes(int32_t status, const char *role, const abqc_tensor_info *info,
                                  const DLTensor *tensor) {
    for (int32_t d = 0; d < info->ndim; d++)
        if (info->dims[d] >= 0 && info->dims[d] != tensor->shape[d])
            return abqc_error(status, "axis %d of %s '%s' is %" PRId64 ", must be %" PRId64, (int)d,
                              role, info->name, tensor->shape[d], info->dims[d]);
    return ABQC_OK;
}

/* The first input to use a symbol gives its size; the others must agree. */
static int32_t check_symbols(int32_t i, const DLTensor *tensor, int64_t *symbol_sizes,
                             int32_t *symbol_inputs) {
    const abqc_tensor_info *info = &abqc_meta.info.inputs[i];
    for (int32_t d = 0; d < info->ndim; d++) {
        if (info->dims[d] >= 0) continue;
        int64_t symbol = -1 - info->dims[d];
        if (symbol_inputs[symbol] < 0) {
            symbol_inputs[symbol] = i;
            symbol_sizes[symbol] = tensor->shape[d];
        } else if (symbol_sizes[symbol] != tensor->shape[d]) {
            return abqc_error(ABQC_E_INPUT,
                              "axis %d of input '%s' is %" PRId64 ", must be '%s' = %" PRId64
                              " as in '%s'",
                              (int)d, info->name, tensor->shape[d], abqc_meta.info.symbols[symbol],
                              symbol_sizes[symbol],
                              abqc_meta.info.inputs[symbol_inputs[symbol]].name);
        }
    }
    return ABQC_OK;
}

/* false: beyond 64 bits, which no size is. */
static bool evaluate(const abqc_expression *expression, const int64_t *symbol_sizes,
                     int64_t *result) {
    *result = 0;
    for (int32_t t = 0; t < expression->count; t++) {
        const abqc_term *term = &expression->terms[t];
        int64_t product = term->factor;
        for (int32_t f = 0; f < term->count; f++)
            if (__builtin_mul_overflow(product, symbol_sizes[term->symbols[f]], &product))
                return false;
        if (__builtin_add_overflow(*result, product, result)) return false;
    }
    return true;
}

/* "past = 4, seq = 5": the names in an expression, each once. */
static const char *format_names(const abqc_expression *expression, const int64_t *symbol_sizes,
                                char *text, size_t length) {
    size_t at = 0;
    text[0] = '\0';
    for (int32_t s = 0; s < abqc_meta.info.symbol_count; s++) {
        bool used = false;
        for (int32_t t = 0; t < expression->count; t++)
            for (int32_t f = 0; f < expression->terms[t].count; f++)
                used |= expression->terms[t].symbols[f] == s;
        if (used && at < length)
            at += (size_t)snprintf(text + at, length - at, "%s%s = %" PRId64, at ? ", " : "",
                                   abqc_meta.info.symbols[s], symbol_sizes[s]);
    }
    return text;
}

/* Sizes made of others, once those are known. The first input that has one may be the wrong one. */
static int32_t check_expressions(const int64_t *symbol_sizes, const int32_t *symbol_inputs) {
    for (int32_t s = 0; s < abqc_meta.info.symbol_count; s++) {
        const abqc_expression *expression = &abqc_meta.expressions[s];
        int64_t expected;
        char names[256];
        if (!expression->count || symbol_inputs[s] < 0) continue;
        bool fits = evaluate(expression, symbol_sizes, &expected);
        if (fits && expected == symbol_sizes[s]) continue;
        const abqc_tensor_info *info = &abqc_meta.info.inputs[symbol_inputs[s]];
        int32_t axis = 0;
        while (info->dims[axis] != -1 - s) axis++;
        return abqc_error(ABQC_E_INPUT, "axis %d of input '%s' is %" PRId64 ", must be '%s' (%s)",
                          (int)axis, info->name, symbol_sizes[s], abqc_meta.info.symbols[s],
                          format_names(expression, symbol_sizes, names, sizeof names));
    }
    return ABQC_OK;
}

int32_t abqc_check_inputs(const abqc_device *device, const DLTensor *const *inputs,
                          int64_t *symbol_sizes, int32_t *symbol_inputs) {
    for (int32_t s = 0; s < abqc_meta.info.symbol_count; s++) symbol_inputs[s] = -1;
    for (int32_t i = 0; i < abqc_meta.info.input_count; i++) {
        const abqc_tensor_info *info = &abqc_meta.info.inputs[i];
        int32_t status = check_tensor(device, ABQC_E_INPUT, "input", info, inputs[i]);
        if (!status) status = check_static_sizes(ABQC_E_INPUT, "input", info, inputs[i]);
        if (!status) status = check_symbols(i, inputs[i], symbol_sizes, symbol_inputs);
        if (status) return status;
    }
    return check_expressions(symbol_sizes, symbol_inputs);
}

int32_t abqc_check_output_buffers(const abqc_device *device, DLManagedTensor *const *outputs) {
    for (int32_t i = 0; i < abqc_meta.info.output_count; i++) {
        const abqc_tensor_info *info = &abqc_meta.info.outputs[i];
        if (!outputs[i]) continue;
        const DLTensor *tensor = &outputs[i]->dl_tensor;
        int32_t status = check_tensor(device, ABQC_E_OUTPUT, "the buffer for output", info, tensor);
        if (!status)
            status = check_static_sizes(ABQC_E_OUTPUT, "the buffer for output", info, tensor);
        if (status) return status;
    }
    return ABQC_OK;
}
