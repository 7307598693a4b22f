"""speedup rules for arithmetic between tensors, and for joining tensors."""

from __future__ import annotations

from collections.abc import Iterable

from speedup import Movement, Rule, hookimpl, variants

_POINTWISE = (
    # arithmetic
    "add sub subtract rsub div divide true_divide floor_divide remainder fmod pow float_power maximum minimum "
    "fmax fmin atan2 arctan2 hypot copysign ldexp logaddexp logaddexp2 xlogy nextafter lerp addcdiv "
    "neg negative positive abs absolute sign sgn signbit square sqrt rsqrt reciprocal clamp clamp_min clamp_max clip "
    "exp exp2 expm1 log log2 log10 log1p erf erfc erfinv lgamma digamma sinc logit "
    "sin cos tan asin acos atan sinh cosh tanh asinh acosh atanh deg2rad rad2deg "
    "floor ceil round trunc fix frac nan_to_num "
    # comparison and choice
    "eq ne lt le gt ge greater greater_equal less less_equal not_equal isclose isnan isinf isfinite "
    "logical_and logical_or logical_xor logical_not bitwise_and bitwise_or bitwise_xor bitwise_not "
    "bitwise_left_shift bitwise_right_shift where masked_fill "
    # the same entries in another form
    "type float double half bfloat16 int long short bool clone contiguous detach alias data cpu cuda "
    "zeros_like ones_like full_like fill"
).split()


@hookimpl
def speedup_rules() -> Iterable[Rule]:
    return [
        Rule(name="pointwise", functions=variants(*_POINTWISE, missing_ok=True), axes="*, ... -> *"),
        Rule(
            name="cast",
            functions=variants("to", "type_as"),
            call="input, *args, **kwargs",
            operands=("input",),
            axes="* -> *",
        ),
        Rule(
            name="mul",
            functions=variants("mul", "multiply"),
            axes="*, ... -> *",
            annihilates={"0": ("1",), "1": ("0",)},
        ),
        Rule(
            name="addcmul",
            functions=variants("addcmul"),
            axes="*, *, * -> *",
            annihilates={"1": ("2",), "2": ("1",)},
        ),
        Movement(
            name="join",
            functions=variants("cat", "concat", "concatenate", "stack", "hstack", "vstack", "dstack"),
        ),
    ]
