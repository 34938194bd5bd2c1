"""Every mistake names its line and says what to write instead."""
import inspect
import math

import numpy as np
import pytest

import jalapeno as jal
from jalapeno import language as tl
from language_support import F, chip, close, line_of, normal, run  # noqa: F401 - fixtures


# ---- Errors: every mistake names the line that ends with "# here" and says what to write instead ----
MISTAKES = []


def mistake(*said):
    """A kernel of x (two dimensions), v (one), n (an int) and s (a float) that is refused with these words."""
    def keep(function):
        MISTAKES.append(pytest.param(function, said, id=function.__name__))
        return function
    return keep


@mistake("decided while the kernel is recorded", "with tl.when(a < b):")
def if_on_a_scalar(x, v, n, s):
    if n > 3:  # here
        tl.store(v, 0, tl.zeros(4))


@mistake("decided while the kernel is recorded")
def if_on_a_bare_scalar(x, v, n, s):
    if s:  # here
        pass


@mistake("decided while the kernel is recorded")
def while_on_a_scalar(x, v, n, s):
    while n < 3:  # here
        n += 1


@mistake("a tile is used in a Python condition", "tl.where(condition, a, b)")
def if_on_a_tile(x, v, n, s):
    t = tl.load(v, 0, 8)
    if t > 0:  # here
        pass


@mistake("nest them for \"and\"")
def and_of_conditions(x, v, n, s):
    with tl.when(n > 1 and n < 5):  # here
        pass


@mistake("conditions combined with & or |; nest")
def bitwise_and_of_conditions(x, v, n, s):
    with tl.when((n > 1) & (n < 5)):  # here
        pass


@mistake("tl.minimum and tl.maximum")
def builtin_min(x, v, n, s):
    min(n, 3)  # here


@mistake("comparison of float scalars")
def comparing_floats(x, v, n, s):
    with tl.when(s > 1):  # here
        pass


@mistake("tl.when of True", "conditions of Python values are plain \"if\"s")
def when_of_a_python_value(x, v, n, s):
    with tl.when(True):  # here
        pass


@mistake("tl.where of a comparison of scalars")
def where_of_scalars(x, v, n, s):
    tl.where(n > 3, 1, 2)  # here


@mistake("where Python needs a number now", "tl.range(...)")
def builtin_range_of_a_scalar(x, v, n, s):
    for _ in range(n):  # here
        pass


@mistake("a value of the chip is used where Python needs a number now")
def float_of_a_scalar(x, v, n, s):
    math.exp(s)  # here


@mistake("{} has no such operation".format("<int scalar>"))
def abs_of_a_scalar(x, v, n, s):
    abs(n)  # here


@mistake("** of scalars")
def power_of_a_scalar(x, v, n, s):
    n ** 2  # here


@mistake("/ of integer scalars; use //")
def dividing_integers(x, v, n, s):
    n / 2  # here


@mistake("mod of float scalars; there are + - * /")
def modulo_of_floats(x, v, n, s):
    s % 2  # here


@mistake("tl.maximum of float scalars, expected integers")
def maximum_of_float_scalars(x, v, n, s):
    tl.maximum(s, 2)  # here


@mistake("'text' where a number or a scalar is expected")
def scalar_of_text(x, v, n, s):
    tl.scalar("text")  # here


@mistake("is an integer that 64 bits do not hold")
def large_integer(x, v, n, s):
    n + 2**63  # here


@mistake("a coordinate is a float scalar, expected an integer; tl.to_int() converts")
def float_coordinate(x, v, n, s):
    tl.load(v, s, 8)  # here


@mistake("a coordinate is 1.5, expected an int or an integer scalar")
def python_float_coordinate(x, v, n, s):
    tl.load(v, 1.5, 8)  # here


@mistake("tl.load of x with 1 coordinates, it has 2 dimensions")
def too_few_coordinates(x, v, n, s):
    tl.load(x, 0, 8)  # here


@mistake("tl.store to v with 2 coordinates, it has 1 dimensions")
def too_many_coordinates(x, v, n, s):
    tl.store(v, (0, 0), tl.zeros(8))  # here


@mistake("tl.load of <tile (8,) float32>, expected an array argument of the kernel")
def load_of_a_tile(x, v, n, s):
    tl.load(tl.zeros(8), 0, 8)  # here


@mistake("tl.load of 2 rows from v, which has 1 dimension")
def rows_of_a_vector(x, v, n, s):
    tl.load(v, 0, (2, 8))  # here


@mistake("tl.store of a tile of shape (2, 8) to v, which has 1 dimension")
def storing_rows_to_a_vector(x, v, n, s):
    tl.store(v, 0, tl.zeros((2, 8)))  # here


@mistake("the value of tl.store is 1.0, expected a tile")
def storing_a_number(x, v, n, s):
    tl.store(v, 0, 1.0)  # here


@mistake("the value of tl.store is <array argument x, float32, 2 dimensions>, expected a tile; tl.load makes a tile of it")
def storing_an_array(x, v, n, s):
    tl.store(v, 0, x)  # here


@mistake("fill is <float scalar>, expected a Python number")
def scalar_fill(x, v, n, s):
    tl.load(v, 0, 8, fill=s)  # here


@mistake("a tile's shape holds a value of the chip; shapes must be Python ints")
def shape_of_a_scalar(x, v, n, s):
    tl.load(v, 0, n)  # here


@mistake("tile shape (2, 2, 2), expected one or two Python ints from 1 to 65535")
def three_dimensional_tile(x, v, n, s):
    tl.zeros((2, 2, 2))  # here


@mistake("tile shape 0, expected one or two Python ints")
def empty_tile(x, v, n, s):
    tl.zeros(0)  # here


@mistake("arithmetic on <array argument v, float32, 1 dimensions>, which lies in memory; tl.load(...) makes a tile of it")
def arithmetic_on_an_array(x, v, n, s):
    v * 2  # here


@mistake("arithmetic on <array argument x", "tl.load(...)")
def indexing_an_array(x, v, n, s):
    x[0]  # here


@mistake("arithmetic on <array argument x", "tl.load(...)")
def comparing_an_array(x, v, n, s):
    x == 0  # here


@mistake("<array argument v, float32, 1 dimensions> beside a tile", "tl.load makes a tile of it")
def an_array_beside_a_tile(x, v, n, s):
    tl.zeros(4) + v  # here


@mistake("len() of <array argument x", "x.shape[0]")
def len_of_an_array(x, v, n, s):
    len(x)  # here


@mistake("array argument x has no size; use tl.load(...)")
def attribute_of_an_array(x, v, n, s):
    x.size  # here


@mistake("shape[2] of <array argument x, float32, 2 dimensions>")
def extent_of_no_dimension(x, v, n, s):
    x.shape[2]  # here


@mistake("+ of shapes (4, 8) and (8, 4), which do not broadcast")
def shapes_that_do_not_broadcast(x, v, n, s):
    tl.zeros((4, 8)) + tl.zeros((8, 4))  # here


@mistake("*= of shapes (1, 8) and (4, 8): in place the left shape stays")
def growing_in_place(x, v, n, s):
    t = tl.zeros((1, 8))
    t *= tl.zeros((4, 8))  # here


@mistake("a transposed tile is changed in place")
def transposed_in_place(x, v, n, s):
    t = tl.zeros((4, 4)).T
    t += 1  # here


@mistake("tl.dot of shapes (4, 8) and (4, 8), expected [M, K] and [K, N]; the right side may be transposed: b.T")
def dot_of_shapes(x, v, n, s):
    tl.dot(tl.zeros((4, 8)), tl.zeros((4, 8)))  # here


@mistake("tl.dot of int8 and float32, expected two float types or int8 twice")
def dot_of_types(x, v, n, s):
    tl.dot(tl.zeros((4, 8), tl.int8), tl.zeros((8, 8)))  # here


@mistake("an operand of tl.dot is <array argument x, float32, 2 dimensions>, expected a tile; tl.load makes a tile of it")
def dot_of_arrays(x, v, n, s):
    tl.dot(x, x)  # here


@mistake("tl.dot into <tile (4, 4) float32>, expected shape (4, 8) of float32")
def dot_into_another_shape(x, v, n, s):
    tl.dot(tl.zeros((4, 8)), tl.zeros((8, 8)), acc=tl.zeros((4, 4)))  # here


@mistake("this tile's accumulators were added to at line", "use the result, or tl.copy() before")
def using_accumulators_that_moved_on(x, v, n, s):
    acc = tl.zeros((8, 8))
    more = acc + tl.dot(tl.zeros((8, 8)), tl.zeros((8, 8)))
    tl.store(x, (0, 0), acc)  # here
    tl.store(x, (0, 0), more)


@mistake("this product was added to accumulators", "call tl.dot again")
def using_a_product_that_was_added(x, v, n, s):
    acc, product = tl.zeros((8, 8)), tl.dot(tl.zeros((8, 8)), tl.zeros((8, 8)))
    acc += product
    tl.store(x, (0, 0), product)  # here


@mistake("tl.drain of <tile (8, 8) float32>, which is not in accumulators")
def draining_scratchpad(x, v, n, s):
    tl.drain(tl.zeros((8, 8)))  # here


@mistake("act 'tanh', expected none, relu, silu or gelu")
def draining_with_another_function(x, v, n, s):
    tl.drain(tl.zeros((8, 8), space="acc"), act="tanh")  # here


@mistake("row_scale of shape (8, 1), expected (1, 8)")
def draining_with_another_shape(x, v, n, s):
    tl.drain(tl.zeros((8, 8), space="acc"), row_scale=tl.zeros((8, 1)))  # here


@mistake("column_scale of shape (1, 8), expected (8, 1)")
def draining_with_another_column(x, v, n, s):
    tl.drain(tl.zeros((8, 8), space="acc"), column_scale=tl.zeros((1, 8)))  # here


@mistake("accumulators of bfloat16, expected float32 or int32")
def accumulators_of_bfloat16(x, v, n, s):
    tl.zeros((8, 8), tl.bfloat16, space="acc")  # here


@mistake("space 'hbm', expected auto, spm or acc")
def another_space(x, v, n, s):
    tl.zeros((8, 8), space="hbm")  # here


@mistake("tiles of int64, which the chip does not compute with")
def tiles_of_int64(x, v, n, s):
    tl.zeros(8, "int64")  # here


@mistake("'float77' is no element type")
def tiles_of_nothing(x, v, n, s):
    tl.zeros(8).to("float77")  # here


@mistake("needs 5242880 bytes of scratchpad, a core has 4194304", "512 x 1024 float32 at line", "Use smaller tiles")
def too_much_scratchpad(x, v, n, s):
    tiles = [tl.zeros((64, 1024)) for _ in range(4)]
    tiles += [tl.zeros((512, 1024))]
    tiles += [tl.zeros((512, 1024))]  # here


@mistake("needs 524288 bytes of accumulators, a core has 262144")
def too_many_accumulators(x, v, n, s):
    tl.zeros((256, 512), space="acc")  # here


@mistake("bytes of scratchpad, a core has 4194304", "8 stages of 512 x 1024 float32 at line", "fewer stages")
def too_many_stages(x, v, n, s):
    for i in tl.range(n, stages=8):
        tl.load(x, (i, 0), (512, 1024))  # here


@mistake("more than 31 registers are alive")
def too_many_scalars(x, v, n, s):
    [n + k for k in range(40)]  # here


@mistake("more than 64 tiles are alive")
def too_many_tiles(x, v, n, s):
    [tl.zeros(8) for k in range(70)]  # here


@mistake("len() of a tile; its extents are x.rows and x.columns")
def len_of_a_tile(x, v, n, s):
    len(tl.zeros(8))  # here


@mistake("a tile cannot be iterated over; use tl.item(tile, row, column)")
def iterating_over_a_tile(x, v, n, s):
    for _ in tl.zeros(8):  # here
        pass


@mistake("assignment to a part of a tile; use tl.where")
def assigning_to_a_part(x, v, n, s):
    t = tl.zeros(8)
    t[0:1] = 5  # here


@mistake("tl.slice_tile takes scalars")
def slicing_with_scalars(x, v, n, s):
    tl.zeros((8, 8))[n]  # here


@mistake("index 8 of a tile of shape (8, 8); expected Python ints and slices without steps")
def indexing_outside(x, v, n, s):
    tl.zeros((8, 8))[8]  # here


@mistake("3 indices for a tile of shape (8, 8)")
def too_many_indices(x, v, n, s):
    tl.zeros((8, 8))[0, 0, 0]  # here


@mistake("an empty part of a tile of shape (8, 8)")
def empty_part(x, v, n, s):
    tl.zeros((8, 8))[4:2]  # here


@mistake("a part of 4 x 4 from (6, <int scalar>) on, of a tile of shape (8, 8)")
def slice_outside(x, v, n, s):
    tl.slice_tile(tl.zeros((8, 8)), 6, n, (4, 4))  # here


@mistake("row 8 of a tile of shape (8, 8)")
def item_outside(x, v, n, s):
    tl.item(tl.zeros((8, 8)), 8)  # here


@mistake("np.exp of a tile; use tl.exp")
def numpy_function(x, v, n, s):
    np.exp(tl.zeros(8))  # here


@mistake("np.power of a tile; x * x")
def numpy_function_that_is_not_there(x, v, n, s):
    np.power(tl.zeros(8), 2)  # here


@mistake("np.mean of a tile; tl.sum(x, axis) / n")
def numpy_reduction(x, v, n, s):
    np.mean(tl.zeros(8))  # here


@mistake("a ndarray beside a tile, expected a tile, a scalar or a number")
def numpy_array_beside_a_tile(x, v, n, s):
    tl.zeros(8) + np.zeros(8)  # here


@mistake("a tile is used where Python needs a number now; tl.item")
def math_function(x, v, n, s):
    math.sqrt(tl.zeros(1))  # here


@mistake("** of tiles; multiply (x * x)")
def power_of_a_tile(x, v, n, s):
    tl.zeros(8) ** 2  # here


@mistake("// and % of tiles; tl.floor(a / b)")
def modulo_of_a_tile(x, v, n, s):
    tl.zeros(8) % 2  # here


@mistake("& | ^ ~ of tiles", "a * b for \"and\"")
def and_of_tiles(x, v, n, s):
    (tl.zeros(8) > 0) & (tl.zeros(8) < 1)  # here


@mistake("there is no tl.trans; x.T is the transposed tile")
def function_of_triton(x, v, n, s):
    tl.trans(tl.zeros((8, 8)))  # here


@mistake("there is no tl.softmaks; did you mean tl.softmax?")
def misspelt_function(x, v, n, s):
    tl.softmaks(tl.zeros((8, 8)))  # here


@mistake("a tile has no reshape; tiles keep their shape")
def method_of_numpy(x, v, n, s):
    tl.zeros((8, 8)).reshape(64)  # here


@mistake("unhashable type: 'Tile'")
def tile_as_a_key(x, v, n, s):
    {tl.zeros(8): 1}  # here


@mistake("missing 1 required positional argument: 'shape'")
def wrong_call(x, v, n, s):
    tl.load(v, 0)  # here


@mistake("axis 2 of a tile of shape (8, 8)")
def reducing_another_axis(x, v, n, s):
    tl.sum(tl.zeros((8, 8)), axis=2)  # here


@mistake("tl.max takes one tile and an axis; tl.maximum(a, b) works on two")
def max_of_two_tiles(x, v, n, s):
    tl.max(tl.zeros(8), tl.zeros(8))  # here


@mistake("axis is 'rows', expected a Python int")
def axis_by_name(x, v, n, s):
    tl.sum(tl.zeros((8, 8)), "rows")  # here


@mistake("argmax over axis 0, expected the last")
def argmax_of_columns(x, v, n, s):
    tl.argmax(tl.zeros((8, 8)), axis=0)  # here


@mistake("sum_squares over axis 0, expected the last")
def sum_squares_of_columns(x, v, n, s):
    tl.sum_squares(tl.zeros((8, 8)), axis=0)  # here


@mistake("top_k of 2000, expected 1 to 1024")
def top_k_of_many(x, v, n, s):
    tl.top_k(tl.zeros((8, 8)), 2000)  # here


@mistake("rmsnorm weight of shape (4,), expected (8,)")
def rmsnorm_of_another_weight(x, v, n, s):
    tl.rmsnorm(tl.zeros((8, 8)), tl.zeros(4))  # here


@mistake("eps of rmsnorm is <tile (8,) float32>, expected a number or a scalar")
def rmsnorm_of_a_tile_eps(x, v, n, s):
    tl.rmsnorm(tl.zeros((8, 8)), tl.zeros(8), tl.zeros(8))  # here


@mistake("rope of (8, 8) with heads of 3, 3 rotated")
def rope_of_odd_heads(x, v, n, s):
    tl.rope(tl.zeros((8, 8)), tl.zeros((1, 4)), tl.zeros((1, 4)), 3)  # here


@mistake("glu of (8, 8) and (8, 4) with act 'silu'")
def glu_of_shapes(x, v, n, s):
    tl.glu(tl.zeros((8, 8)), tl.zeros((8, 4)))  # here


@mistake("softmax_step of 8 rows, expected a tl.SoftmaxState of as many")
def softmax_step_of_another_state(x, v, n, s):
    tl.softmax_step(tl.zeros((8, 8)), tl.SoftmaxState(4))  # here


@mistake("softmax_step scaled by a tile")
def softmax_step_scaled_by_a_tile(x, v, n, s):
    tl.softmax_step(tl.zeros((8, 8)), tl.SoftmaxState(8), tl.zeros((8, 8)))  # here


@mistake("row_step -1 of tl.mask, expected at least 0")
def mask_downwards(x, v, n, s):
    tl.mask(tl.zeros((8, 8)), 0, n, row_step=-1)  # here


@mistake("the index of tl.gather is <tile (8,) float32>, expected one row of int32")
def gather_by_floats(x, v, n, s):
    tl.gather(x, tl.zeros(8), 4)  # here


@mistake("tl.gather of <array argument v, float32, 1 dimensions>, expected an array argument of 2 dimensions")
def gather_from_a_vector(x, v, n, s):
    tl.gather(v, tl.arange(8), 4)  # here


@mistake("unit 0 of tl.gather, expected at least 1")
def gather_of_nothing(x, v, n, s):
    tl.gather(x, tl.arange(8), 4, unit=0)  # here


@mistake("tl.scatter of 4 rows with 8 indices of 1 rows each")
def scatter_of_other_rows(x, v, n, s):
    tl.scatter(x, tl.arange(8), tl.zeros((4, 4)))  # here


@mistake("tl.fma of shapes", "do not broadcast")
def fma_of_shapes(x, v, n, s):
    tl.fma(tl.zeros((4, 8)), tl.zeros((4, 8)), tl.zeros((8, 8)))  # here


@mistake("axis 3 of the grid, expected 0, 1 or 2")
def fourth_axis(x, v, n, s):
    tl.program_id(3)  # here


@mistake("device_assert of True, expected a comparison of scalars")
def device_assert_of_a_python_value(x, v, n, s):
    tl.device_assert(True)  # here


@mistake("code -1 of device_assert")
def device_assert_of_a_negative_code(x, v, n, s):
    tl.device_assert(n > 0, -1)  # here


@mistake("static_assert failed: a reason")
def failed_static_assert(x, v, n, s):
    tl.static_assert(1 > 2, "a reason")  # here


@mistake("stages=9, expected 1 to 8")
def nine_stages(x, v, n, s):
    for _ in tl.range(n, stages=9):  # here
        pass


@mistake("step -1, expected above 0")
def downwards(x, v, n, s):
    for _ in tl.range(n, 0, -1):  # here
        pass


@mistake("a bound of tl.range is 2.5, expected an int or an integer scalar")
def range_of_a_float(x, v, n, s):
    for _ in tl.range(2.5):  # here
        pass


@mistake("tl.range stands alone in a for statement")
def comprehension(x, v, n, s):
    [tl.load(v, i, 8) for i in tl.range(n)]  # here


@mistake("tl.range stands alone in a for statement")
def enumerated(x, v, n, s):
    for _, i in enumerate(tl.range(n)):  # here
        pass


@mistake("the loop is left by break or return")
def breaking(x, v, n, s):
    for i in tl.range(n):
        tl.store(v, i, tl.zeros(8))
        break  # here
    tl.store(v, 0, tl.zeros(8))


@mistake("the loop is left by break or return")
def returning_from_a_loop(x, v, n, s):
    for i in tl.range(n):
        if i.kind == "int":
            return  # here


@mistake("the loop is left by break or return")
def breaking_inside_another_block(x, v, n, s):
    with tl.when(n > 3):
        for _ in tl.range(n):
            for _ in tl.range(n):
                break  # here


@mistake("return inside tl.when", "~condition")
def returning_from_a_condition(x, v, n, s):
    with tl.when(n > 3):
        return  # here
    tl.store(v, 0, tl.zeros(8))


@mistake("continue inside tl.when")
def continuing_from_a_condition(x, v, n, s):
    for i in tl.range(n):
        with tl.when(i == 3):
            if x.ndim == 2:
                continue  # here
        tl.store(v, i, tl.zeros(8))


@mistake("count is a Python number that changes in a loop of the chip", "count = tl.scalar(0)")
def counting_in_python(x, v, n, s):
    count = 0
    for _ in tl.range(n):  # here
        count = count + 1
    tl.store(v, count, tl.zeros(8))


@mistake("found is a Python number that changes in a condition of the chip", "found = tl.scalar(0)")
def counting_in_a_condition(x, v, n, s):
    found = 0
    with tl.when(n > 2):  # here
        found = 1
    tl.store(v, found, tl.zeros(8))


@mistake("parts grows or shrinks in a loop of the chip")
def appending_in_a_loop(x, v, n, s):
    parts = []
    for i in tl.range(n):  # here
        parts.append(tl.load(v, i, 8))
    for part in parts:
        tl.store(v, 0, part)


@mistake("best is None before the loop and <tile (8,) float32> at its end")
def starting_from_none(x, v, n, s):
    best = None
    for i in tl.range(n):  # here
        t = tl.load(v, i, 8)
        best = t if best is None else tl.maximum(best, t)
    tl.store(v, 0, best)


@mistake("acc is a tile before the loop and 0 at its end")
def a_tile_becomes_a_number(x, v, n, s):
    acc = tl.zeros(8)
    for _ in tl.range(n):  # here
        tl.store(v, 0, acc)
        acc = 0


@mistake("count is a scalar before the loop and <tile (8,) float32> at its end")
def a_scalar_becomes_a_tile(x, v, n, s):
    count = tl.scalar(0)
    for _ in tl.range(n):  # here
        count = count + tl.zeros(8)
    tl.store(v, 0, count)


@mistake("acc changes from <tile (1, 8) float32> to <tile (4, 8) float32> in the loop; it must keep shape and type")
def a_shape_changes(x, v, n, s):
    acc = tl.zeros((1, 8))
    for _ in tl.range(n):  # here
        acc = acc + tl.zeros((4, 8))
    tl.store(x, (0, 0), acc)


@mistake("acc changes from <tile (8,) bfloat16> to <tile (8,) float32>", "x.to(bfloat16) converts")
def a_type_changes(x, v, n, s):
    acc = tl.zeros(8, tl.bfloat16)
    for _ in tl.range(n):  # here
        acc = acc * 2
    tl.store(v, 0, acc)


@mistake("count changes from int to float in the loop; use tl.to_float() or tl.to_int()")
def a_scalar_changes_its_kind(x, v, n, s):
    count = tl.scalar(0)
    for _ in tl.range(n):  # here
        count = count + 0.5
    tl.store(v, 0, tl.full(8, count))


@mistake("flag is a comparison before the loop and a Condition at its end")
def a_condition_changes(x, v, n, s):
    flag = n > 2
    for _ in tl.range(n):  # here
        with tl.when(flag):
            tl.store(v, 0, tl.zeros(8))
        flag = n > 3


@mistake("t is a transposed tile before the loop and changes in it; start with tl.copy(x.T)")
def a_transposed_tile_changes(x, v, n, s):
    t = tl.zeros((4, 4)).T
    for _ in tl.range(n):  # here
        t = t + 1
    tl.store(x, (0, 0), t)


@mistake("the kernel returns <tile (8,) float32>; results are stored into array arguments")
def returning_a_value(x, v, n, s):
    if v.ndim == 5:
        return None
    t = tl.zeros(8)
    return t  # here


@pytest.mark.parametrize("function, said", MISTAKES)
def test_mistakes(chip, function, said):
    with pytest.raises(jal.CompileError) as e:
        jal.kernel(function).compile((F, 2), F, int, float, device=chip)
    text = str(e.value)
    # An error at the end of a loop is told where the next thing starts: the for statement.
    line = line_of("here", function)
    assert (e.value.file, e.value.line) == (__file__, line), text
    assert text.startswith(f"{__file__}:{line}: kernel {function.__name__}: ")
    for part in said:
        assert part in text, text


def test_mistakes_in_helpers_name_the_innermost_line_of_the_file(chip):
    def helper(t):
        return t + tl.zeros((3, 3))  # in the helper

    def k(v):
        helper(tl.zeros((2, 2)))

    with pytest.raises(jal.CompileError) as e:
        jal.kernel(k).compile(F, device=chip)
    assert e.value.line == line_of("in the helper")
    scope = {"tl": tl}
    exec(compile("def elsewhere(t):\n    return t + tl.zeros((3, 3))\n", "/somewhere/else.py", "exec"), scope)

    def m(v):
        scope["elsewhere"](tl.zeros((2, 2)))  # calls another file

    with pytest.raises(jal.CompileError) as e:
        jal.kernel(m).compile(F, device=chip)
    assert e.value.line == line_of("calls another file") and e.value.file == __file__


def test_semaphores_of_one_loop_body(run):
    """A body that would need more semaphores than there are is cut by joins."""
    def k(x, n, y):
        for i in tl.range(n, stages=2):
            rows = [tl.load(x, (i * 12 + k, 0), (1, 16)) for k in range(12)]
            for k, t in enumerate(rows):
                tl.store(y, (i * 12 + k, 0), tl.dot(tl.exp(t).T, t)[0] + rows[11 - k])

    x = normal(36, 16)
    d = x.astype(np.float64)
    want = np.exp(d[:, :1]) * d + d.reshape(3, 12, 16)[:, ::-1].reshape(36, 16)
    close(run(k, x, 3, out=(36, 16)), want, rtol=1e-5, atol=1e-5)


def test_outside_a_kernel():
    with pytest.raises(jal.CompileError, match="the tile language works only inside a function decorated with @jalapeno.kernel"):
        tl.zeros(8)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        tl.nothing
    assert not hasattr(tl, "nothing")
    # In the kernel of one thread another thread is outside.
    assert set(tl.__all__) >= {"load", "store", "dot", "range", "when", "zeros", "float32", "Tile"} and "numbers" not in tl.__all__
    assert all(hasattr(tl, n) for n in tl.__all__)
