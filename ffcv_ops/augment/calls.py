"""How the loop over samples calls augmentations: as C functions, by their addresses.

The loop is compiled once for all of them, and an augmentation, whosever it is, alone: a new one costs a second, not the
half minute that decoder and resampler take. Nothing is inlined, which costs nothing beside an image.
"""

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from ffcv_ops.augment.load import key_of
from ffcv_ops.compiled import kernel


def _call(context, builder, address, result, kinds, values):
    """The C function at `address`, which takes `values` of Numba's types `kinds`."""
    function = ir.FunctionType(result, [context.get_value_type(kind) for kind in kinds])
    return builder.call(builder.inttoptr(address, function.as_pointer()), values)


def _pointer(context, builder, kind, array, offset):
    """Where byte `offset` of an array of bytes is."""
    data = cgutils.create_struct_proxy(kind)(context, builder, array).data
    return builder.gep(data, [offset])


@intrinsic
def _change(typing_context, address, planes, options, offset, key, scratch):
    """Calls an augmentation's kernel. options: bytes, in which its record begins at `offset`."""

    def generate(context, builder, signature, arguments):
        address, planes, options, offset, key, scratch = arguments
        record = _pointer(context, builder, signature.args[2], options, offset)
        kinds = (signature.args[1], types.voidptr, signature.args[4], signature.args[5])
        _call(context, builder, address, ir.VoidType(), kinds, (planes, record, key, scratch))
        return context.get_dummy_value()

    return types.void(types.int64, planes, options, types.int64, key, scratch), generate


@intrinsic
def _ask(typing_context, address, options, key):
    """Calls an augmentation's `is_gray`; its record is the first of `options`."""

    def generate(context, builder, signature, arguments):
        address, options, key = arguments
        zero = ir.Constant(ir.IntType(64), 0)
        record = _pointer(context, builder, signature.args[1], options, zero)
        return _call(context, builder, address, ir.IntType(64), (types.voidptr, signature.args[2]), (record, key))

    return types.int64(types.int64, options, key), generate


@kernel
def apply(chain, planes, key, scratch):
    """Changes `planes` (uint8 [3, height, width]) in place. chain: load.Compiled. scratch: uint8, `scratch_size`."""
    for place in range(len(chain.callbacks)):
        own = key_of(place, chain.own[place], key)
        _change(chain.callbacks[place], planes, chain.options, chain.offsets[place], own, scratch)


@kernel
def is_gray(chain, key):
    """Whether the first augmentation makes this sample gray before anything happens to its colors."""
    if chain.is_gray == 0:
        return False
    return _ask(chain.is_gray, chain.options, key_of(0, chain.own[0], key)) != 0
