"""How threads share the samples of a batch: each takes the next one until there is none."""

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic


@intrinsic
def next_ticket(typing_context, counter):
    """Atomically adds one to counter[0] (int64 array) and returns the value before: the ticket of a free thread."""

    def generate(context, builder, signature, arguments):
        array = cgutils.create_struct_proxy(signature.args[0])(context, builder, arguments[0])
        return builder.atomic_rmw("add", array.data, ir.Constant(ir.IntType(64), 1), "monotonic")

    return types.int64(counter), generate
