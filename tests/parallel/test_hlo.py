"""Bytes and FLOPs by kernel, on HLO small enough to count by hand, and on what this jax compiles."""

import jax
import jax.numpy as jnp
import pytest

from vitscale.parallel.hlo import kernels, top, traffic

HEAD = "HloModule m, is_scheduled=true\n\n"


def entry(*lines, computations=""):
    """A module of these instructions; the last one is the root."""
    *body, root = lines
    text = "\n".join(f"  {line}" for line in body) + f"\n  ROOT {root}\n"
    return f"{HEAD}{computations}\nENTRY %main (p: f32[]) -> f32[] {{\n{text}}}\n"


def only(text):
    (kernel,) = kernels(text)
    return kernel


def test_a_cublas_call_reads_its_operands_and_leaves_the_workspace_out():
    text = entry(
        "%a = bf16[128,64]{1,0} parameter(0)",
        "%b = bf16[64,32]{1,0} parameter(1)",
        "%c = bf16[128,32]{1,0} parameter(2)",
        "%bias = bf16[32]{0} parameter(3)",
        "%gemm = (bf16[128,32]{1,0}, s8[4194304]{0}) custom-call(%a, %b, %c, %bias), "
        'custom_call_target="__cublas$lt$matmul", output_to_operand_aliasing={{0}: (2, {})}, '
        'metadata={op_name="jit(f)/dot_general"}, backend_config={"gemm_backend_config":{"beta":1,'
        '"dot_dimension_numbers":{"lhs_contracting_dimensions":["1"]}}}',
        "%out = bf16[128,32]{1,0} get-tuple-element(%gemm), index=0",
    )
    kernel = only(text)
    assert (kernel.kind, kernel.op_name) == ("matmul", "jit(f)/dot_general")
    # The accumulated operand (beta = 1) is read and written.
    assert kernel.bytes == 2 * (128 * 64 + 64 * 32 + 128 * 32 + 32 + 128 * 32)
    assert kernel.flops == 2 * 128 * 64 * 32


def test_a_triton_gemm_fusion_counts_the_dot_inside():
    fused = """%gemm_computation (p0: f32[64,128], p1: bf16[4,64,32]) -> bf16[4,128,32] {
  %p0 = f32[64,128]{1,0} parameter(0)
  %cast = bf16[64,128]{1,0} convert(%p0)
  %p1 = bf16[4,64,32]{2,1,0} parameter(1)
  %wide = bf16[4,64,128]{2,1,0} broadcast(%cast), dimensions={1,2}
  ROOT %dot = bf16[4,128,32]{2,1,0} dot(%wide, %p1), lhs_batch_dims={0}, lhs_contracting_dims={1}, rhs_batch_dims={0}
}
"""
    text = entry(
        "%a = f32[64,128]{1,0} parameter(0)",
        "%b = bf16[4,64,32]{2,1,0} parameter(1)",
        "%f = bf16[4,128,32]{2,1,0} fusion(%a, %b), kind=kCustom, calls=%gemm_computation",
        computations=fused,
    )
    kernel = only(text)
    assert kernel.kind == "matmul"
    assert kernel.flops == 2 * (4 * 128 * 32) * 64
    assert kernel.bytes == 4 * 64 * 128 + 2 * 4 * 64 * 32 + 2 * 4 * 128 * 32


@pytest.mark.parametrize(("target", "products"), [("", 2), ("Backward", 5)])
def test_cudnn_attention_counts_its_products(target, products):
    text = entry(
        "%q = bf16[2,16,4,8]{3,2,1,0} parameter(0)",
        "%out = (bf16[2,4,16,8]{3,1,2,0}, f32[2,4,16]{2,1,0}, u8[0]{0}) custom-call(%q, %q, %q), "
        f'custom_call_target="__cudnn$fmhaSoftmax{target}", backend_config={{'
        '"intermediate_tensor_shape": {"element_type": "BF16", "dimensions": ["2", "4", "16", "16"]}}',
    )
    kernel = only(text)
    assert kernel.kind == "attention"
    assert kernel.flops == products * 2 * (2 * 4 * 16 * 16) * 8
    # The same operand three times is read once.
    assert kernel.bytes == 2 * 1024 + 2 * 1024 + 4 * 128


def test_a_fusion_reads_only_the_slice_and_writes_only_the_update():
    fused = """%update (p0: f32[10,1000], p1: f32[10,1000], p2: s32[], p3: f32[1000]) -> f32[10,1000] {
  %p0 = f32[10,1000]{1,0} parameter(0)
  %p1 = f32[10,1000]{1,0} parameter(1)
  %p2 = s32[] parameter(2)
  %zero = s32[] constant(0)
  %row = f32[1,1000]{1,0} dynamic-slice(%p1, %p2, %zero), dynamic_slice_sizes={1,1000}
  %p3 = f32[1000]{0} parameter(3)
  %flat = f32[1,1000]{1,0} bitcast(%p3)
  %sum = f32[1,1000]{1,0} add(%row, %flat)
  ROOT %dus = f32[10,1000]{1,0} dynamic-update-slice(%p0, %sum, %p2, %zero)
}
"""
    text = entry(
        "%buffer = f32[10,1000]{1,0} parameter(0)",
        "%table = f32[10,1000]{1,0} parameter(1)",
        "%i = s32[] parameter(2)",
        "%x = f32[1000]{0} parameter(3)",
        "%f = f32[10,1000]{1,0} fusion(%buffer, %table, %i, %x), kind=kLoop, calls=%update",
        computations=fused,
    )
    kernel = only(text)
    assert kernel.kind == "other"
    assert kernel.bytes == 4 * (1000 + 1 + 1000 + 1000)


def test_an_operand_sliced_and_read_whole_counts_whole():
    fused = """%both (p0: f32[10,100]) -> (f32[100], f32[10,100]) {
  %p0 = f32[10,100]{1,0} parameter(0)
  %row = f32[1,100]{1,0} slice(%p0), slice={[0:1], [0:100]}
  %flat = f32[100]{0} bitcast(%row)
  %minus = f32[10,100]{1,0} negate(%p0)
  ROOT %t = (f32[100]{0}, f32[10,100]{1,0}) tuple(%flat, %minus)
}
"""
    text = entry(
        "%a = f32[10,100]{1,0} parameter(0)",
        "%f = (f32[100]{0}, f32[10,100]{1,0}) fusion(%a), kind=kLoop, calls=%both",
        computations=fused,
    )
    assert only(text).bytes == 4 * (1000 + 100 + 1000)


def test_kinds_and_free_instructions():
    fused = """%moves (p0: f32[8,4]) -> f32[4,8] {
  %p0 = f32[8,4]{1,0} parameter(0)
  ROOT %t = f32[4,8]{1,0} transpose(%p0), dimensions={1,0}
}

%adds (x: f32[], y: f32[]) -> f32[] {
  %x = f32[] parameter(0)
  %y = f32[] parameter(1)
  ROOT %s = f32[] add(%x, %y)
}
"""
    text = entry(
        "%a = f32[8,4]{1,0} parameter(0)",
        "%view = f32[32]{0} bitcast(%a)",
        "%t = f32[4,8]{1,0} fusion(%a), kind=kInput, calls=%moves",
        "%copied = f32[4,8]{1,0} copy(%t)",
        "%start = f32[4,8]{1,0} all-reduce-start(%copied), replica_groups={{0,1}}, to_apply=%adds",
        "%done = f32[4,8]{1,0} all-reduce-done(%start)",
        "%gather = (f32[4,8]{1,0}, f32[8,8]{1,0}) all-gather-start(%done), dimensions={0}",
        "%gathered = f32[8,8]{1,0} all-gather-done(%gather)",
        "%zero = f32[] constant(0)",
        "%sum = f32[] reduce(%gathered, %zero), dimensions={0,1}, to_apply=%adds",
        computations=fused,
    )
    found = [(k.name, k.kind, k.bytes) for k in kernels(text)]
    assert found == [
        ("t", "copy", 2 * 128),
        ("copied", "copy", 2 * 128),
        ("start", "collective", 2 * 128),
        ("gather", "collective", 128 + 256),
        ("sum", "other", 256 + 4 + 4),
    ]


LOOP = """%body (t: (s32[], f32[100])) -> (s32[], f32[100]) {
  %t = (s32[], f32[100]{0}) parameter(0)
  %before = s32[] get-tuple-element(%t), index=0
  %step = s32[] constant(STEP)
  %i = s32[] add(%before, %step)
  %x = f32[100]{0} get-tuple-element(%t), index=1
  %y = f32[100]{0} negate(%x), metadata={op_name="jit(f)/while/body/neg"}
  ROOT %r = (s32[], f32[100]{0}) tuple(%i, %y)
}

%condition (t.1: (s32[], f32[100])) -> pred[] {
  %t.1 = (s32[], f32[100]{0}) parameter(0)
  %i.1 = s32[] get-tuple-element(%t.1), index=0
  BOUND
  ROOT %less = pred[] compare(%i.1, %n), direction=LT
}
"""


@pytest.mark.parametrize(
    ("bound", "step", "config"),
    [
        ("%n = s32[] constant(7)", 1, ""),
        ("%n = s32[] constant(13)", 2, ""),  # unrolled once
        ("%n = s32[] constant(9)", 1, ', backend_config={"known_trip_count":{"n":"7"}}'),
    ],
)
def test_a_loop_body_counts_once_a_trip(bound, step, config):
    text = entry(
        "%start = (s32[], f32[100]{0}) parameter(0)",
        f"%w = (s32[], f32[100]{{0}}) while(%start), condition=%condition, body=%body{config}",
        computations=LOOP.replace("BOUND", bound).replace("STEP", str(step)),
    )
    negations = [k for k in kernels(text) if k.name == "y"]
    assert [(k.bytes, k.runs) for k in negations] == [(7 * 800, 7)]
    assert top(text, 1)[0].op_name == "jit(f)/while/body/neg"


def test_a_loop_of_unknown_length_is_an_error():
    text = entry(
        "%start = (s32[], f32[100]{0}) parameter(0)",
        "%w = (s32[], f32[100]{0}) while(%start), condition=%condition, body=%body",
        computations=LOOP.replace("BOUND", "%n = s32[] get-tuple-element(%t.1), index=0").replace(
            "STEP", "1"
        ),
    )
    with pytest.raises(ValueError, match="%w runs a number of times"):
        kernels(text)


def test_a_conditional_counts_its_larger_branch():
    branches = """%small (a: f32[10]) -> f32[10] {
  %a = f32[10]{0} parameter(0)
  ROOT %one = f32[10]{0} negate(%a)
}

%large (b: f32[10]) -> f32[10] {
  %b = f32[10]{0} parameter(0)
  %two = f32[10]{0} negate(%b)
  ROOT %three = f32[10]{0} negate(%two)
}
"""
    text = entry(
        "%p = s32[] parameter(0)",
        "%x = f32[10]{0} parameter(1)",
        "%c = f32[10]{0} conditional(%p, %x, %x), branch_computations={%small, %large}",
        computations=branches,
    )
    assert [k.name for k in kernels(text)] == ["two", "three"]


def test_the_innermost_line_of_ours_is_the_source():
    tables = """FileNames
1 "/home/me/vitscale/models/vit.py"
2 "/venv/lib/site-packages/flax/linear.py"

FileLocations
1 {file_name_id=1 function_name_id=1 line=10 end_line=10 column=1 end_column=2}
2 {file_name_id=1 function_name_id=2 line=20 end_line=21 column=1 end_column=2}
3 {file_name_id=2 function_name_id=3 line=30 end_line=30 column=1 end_column=2}

StackFrames
1 {file_location_id=1 parent_frame_id=1}
2 {file_location_id=2 parent_frame_id=2}
3 {file_location_id=3 parent_frame_id=3}

"""
    text = entry(
        "%a = f32[10]{0} parameter(0)",
        '%b = f32[10]{0} negate(%a), metadata={op_name="f/neg" stack_frame_id=3}',
    ).replace(HEAD, HEAD + tables)
    assert only(text).source == "vitscale/models/vit.py:20"


def test_a_text_without_entry_is_an_error():
    with pytest.raises(ValueError, match="no ENTRY"):
        kernels("stablehlo")


@pytest.mark.parametrize("length", [3, 11])
def test_a_compiled_scan(length):
    """What XLA's CPU compiler prints today: products inside a scan count once a step."""

    def step(x, w):
        return jnp.tanh(x @ w), x.sum()

    compiled = jax.jit(lambda x, ws: jax.lax.scan(step, x, ws)).lower(
        jax.ShapeDtypeStruct((64, 32), jnp.float32),
        jax.ShapeDtypeStruct((length, 32, 32), jnp.float32),
    )
    total = traffic(compiled.compile().as_text())
    assert total["matmul"].flops == length * 2 * 64 * 32 * 32
    assert total["matmul"].count == length
    # Each step reads the carry and one layer's weights, and writes a product.
    assert total["matmul"].bytes == length * 4 * (2 * 64 * 32 + 32 * 32)


def test_a_compiled_training_step_names_its_lines():
    def loss(w, x):
        return jnp.sum(jnp.tanh(x @ w) ** 2)

    shapes = jax.ShapeDtypeStruct((32, 32), jnp.float32), jax.ShapeDtypeStruct((8, 32), jnp.float32)
    text = jax.jit(jax.grad(loss)).lower(*shapes).compile().as_text()
    products = [k for k in kernels(text) if k.kind == "matmul"]
    assert sum(k.flops for k in products) == 2 * 2 * 8 * 32 * 32
    assert all("tests/parallel/test_hlo.py:" in k.source for k in products)
    assert any("transpose(jvp" in k.op_name for k in products)  # the backward one
