"""Pillow's resize as an ONNX graph with bit-identical results, so that a model file accepts images of any size.

ONNX's own antialiased Resize differs from Pillow by up to 13 grey levels in ONNX Runtime 1.31. Pillow's bilinear filter
consists of two products with banded matrices, with coefficients rounded to 22 bits. In float64 every product and sum is
an exact integer, so this graph gives exactly the same pixels (`tests/export/test_export.py`).
Source: Pillow, src/libImaging/Resample.c (precompute_coeffs, normalize_coeffs_8bpc, ImagingResampleHorizontal_8bpc).
"""

import onnx
from onnxscript import DOUBLE, INT64, UINT8, script
from onnxscript import opset20 as op

from dermrw.images.preprocess import MOST_SQUEEZED, Crop, Interpolation

UNIT = 2.0**22  # Pillow's fixed point: coefficients are integers in units of 2^-22
DOUBLE_TYPE, INT64_TYPE, UINT8_TYPE = 11, 7, 2  # onnx.TensorProto.DOUBLE, INT64, UINT8


@script()
def _real(value: INT64) -> DOUBLE:
    return op.Cast(value, to=DOUBLE_TYPE)


@script()
def _coefficients(inputs: INT64, outputs: INT64, size: INT64) -> DOUBLE:
    """Returns filter coefficients `[size, inputs]`, in units of 2^-22, for the middle `size` of `outputs` pixels."""
    zero, one, two = op.Constant(value_int=0), op.Constant(value_int=1), op.Constant(value_int=2)
    half = op.Cast(op.Constant(value_float=0.5), to=DOUBLE_TYPE)
    scale = op.Div(_real(inputs), _real(outputs))
    support = op.Max(scale, _real(one))  # wider than a pixel for a reduction, which is the antialiasing
    first = op.Div(op.Sub(outputs, size), two)
    centre = op.Mul(op.Add(_real(op.Range(first, op.Add(first, size), one)), half), scale)  # [size]
    place = op.Add(_real(op.Range(zero, inputs, one)), half)  # [inputs]
    away = op.Abs(
        op.Sub(op.Unsqueeze(centre, op.Constant(value_ints=[1])), op.Unsqueeze(place, op.Constant(value_ints=[0])))
    )
    weight = op.Max(op.Sub(_real(one), op.Div(away, support)), _real(zero))
    weight = op.Div(weight, op.ReduceSum(weight, op.Constant(value_ints=[1]), keepdims=1))
    return op.Floor(op.Add(op.Mul(weight, op.Cast(op.Constant(value_float=UNIT), to=DOUBLE_TYPE)), half))


@script()
def _bicubic_coefficients(inputs: INT64, outputs: INT64, size: INT64) -> DOUBLE:
    """As `_coefficients`, by Pillow's bicubic filter (a = -0.5), which is 0 from 2 input pixels on."""
    zero, one, two = op.Constant(value_int=0), op.Constant(value_int=1), op.Constant(value_int=2)
    half = op.Cast(op.Constant(value_float=0.5), to=DOUBLE_TYPE)
    scale = op.Div(_real(inputs), _real(outputs))
    first = op.Div(op.Sub(outputs, size), two)
    centre = op.Mul(op.Add(_real(op.Range(first, op.Add(first, size), one)), half), scale)  # [size]
    place = op.Add(_real(op.Range(zero, inputs, one)), half)  # [inputs]
    away = op.Abs(
        op.Sub(op.Unsqueeze(centre, op.Constant(value_ints=[1])), op.Unsqueeze(place, op.Constant(value_ints=[0])))
    )
    x = op.Mul(away, op.Div(_real(one), op.Max(scale, _real(one))))
    three, five, eight = (
        _real(op.Constant(value_int=3)),
        _real(op.Constant(value_int=5)),
        _real(op.Constant(value_int=8)),
    )
    near = op.Sub(op.Mul(op.Add(_real(one), half), x), op.Sub(three, half))  # 1.5 x - 2.5
    near = op.Add(op.Mul(op.Mul(near, x), x), _real(one))
    far = op.Add(op.Mul(op.Sub(x, five), x), eight)
    far = op.Neg(op.Mul(op.Sub(op.Mul(far, x), _real(op.Constant(value_int=4))), half))
    far = op.Where(op.Less(x, _real(two)), far, op.Sub(x, x))
    weight = op.Where(op.Less(x, _real(one)), near, far)
    weight = op.Div(weight, op.ReduceSum(weight, op.Constant(value_ints=[1]), keepdims=1))
    units = op.Floor(op.Add(op.Mul(op.Abs(weight), op.Cast(op.Constant(value_float=UNIT), to=DOUBLE_TYPE)), half))
    return op.Mul(op.Sign(weight), units)  # rounded half away from 0


@script()
def _clipped_grey(total: DOUBLE) -> DOUBLE:
    """As `_grey`, from 0 to 255: the bicubic filter overshoots at edges."""
    half = op.Cast(op.Constant(value_float=UNIT / 2), to=DOUBLE_TYPE)
    grey = op.Floor(op.Div(op.Add(total, half), op.Cast(op.Constant(value_float=UNIT), to=DOUBLE_TYPE)))
    return op.Max(op.Min(grey, _real(op.Constant(value_int=255))), _real(op.Constant(value_int=0)))


@script()
def _grey(total: DOUBLE) -> DOUBLE:
    """Converts units of 2^-22 to grey levels, rounded half up."""
    half = op.Cast(op.Constant(value_float=UNIT / 2), to=DOUBLE_TYPE)
    return op.Floor(op.Div(op.Add(total, half), op.Cast(op.Constant(value_float=UNIT), to=DOUBLE_TYPE)))


def resize_graph(size: int, crop: Crop = "square", interpolation: Interpolation = "bilinear") -> onnx.ModelProto:
    """Graph of `preprocess.network_pixels`: images uint8 `[N, H, W, 3]` -> pixels uint8 `[N, size, size, 3]`."""
    return _squeeze_graph(size, interpolation) if crop == "whole" else _square_graph(size, interpolation)


def _squeeze_graph(size: int, interpolation: Interpolation) -> onnx.ModelProto:
    """Graph of `preprocess.squeeze`."""
    coefficients = _bicubic_coefficients if interpolation == "bicubic" else _coefficients
    grey_levels = _clipped_grey if interpolation == "bicubic" else _grey

    @script()
    def squeeze(images: UINT8["N", "H", "W", 3]) -> UINT8["N", size, size, 3]:  # noqa: F821
        side, two = op.Constant(value_int=size), op.Constant(value_int=2)
        height = op.Shape(images, start=1, end=2)
        width = op.Shape(images, start=2, end=3)
        longest = op.Mul(op.Min(height, width), op.Constant(value_int=MOST_SQUEEZED))
        tall, wide = op.Min(height, longest), op.Min(width, longest)
        first = op.Concat(op.Div(op.Sub(height, tall), two), op.Div(op.Sub(width, wide), two), axis=0)
        last = op.Add(first, op.Concat(tall, wide, axis=0))
        part = op.Slice(images, first, last, op.Constant(value_ints=[1, 2]))
        tall, wide = op.Squeeze(tall), op.Squeeze(wide)
        grey = op.Cast(op.Transpose(part, perm=[0, 3, 1, 2]), to=DOUBLE_TYPE)  # [N, 3, tall, wide]
        grey = grey_levels(op.MatMul(grey, op.Transpose(coefficients(wide, side, side))))  # [N, 3, tall, size]
        grey = grey_levels(op.MatMul(coefficients(tall, side, side), grey))  # [N, 3, size, size]
        return op.Transpose(op.Cast(grey, to=UINT8_TYPE), perm=[0, 2, 3, 1])

    return squeeze.to_model_proto()


def _square_graph(size: int, interpolation: Interpolation) -> onnx.ModelProto:
    """Graph of `preprocess.resize` and `center_crop`."""
    coefficients = _bicubic_coefficients if interpolation == "bicubic" else _coefficients
    grey_levels = _clipped_grey if interpolation == "bicubic" else _grey

    @script()
    def resize(images: UINT8["N", "H", "W", 3]) -> UINT8["N", size, size, 3]:  # noqa: F821
        side = op.Constant(value_int=size)
        height = op.Squeeze(op.Shape(images, start=1, end=2))
        width = op.Squeeze(op.Shape(images, start=2, end=3))
        scale = op.Div(_real(side), _real(op.Min(height, width)))
        # Round rounds half to even, like Python's round
        tall = op.Max(side, op.Cast(op.Round(op.Mul(_real(height), scale)), to=INT64_TYPE))
        wide = op.Max(side, op.Cast(op.Round(op.Mul(_real(width), scale)), to=INT64_TYPE))
        grey = op.Cast(op.Transpose(images, perm=[0, 3, 1, 2]), to=DOUBLE_TYPE)  # [N, 3, H, W]
        grey = grey_levels(op.MatMul(grey, op.Transpose(coefficients(width, wide, side))))  # [N, 3, H, size]
        grey = grey_levels(op.MatMul(coefficients(height, tall, side), grey))  # [N, 3, size, size]
        return op.Transpose(op.Cast(grey, to=UINT8_TYPE), perm=[0, 2, 3, 1])

    return resize.to_model_proto()
