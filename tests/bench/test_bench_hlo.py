"""Bytes of instructions: counted by hand, and on programs that this XLA compiles."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxinfer.bench.hlo import Program, array_bytes, kernel_name

TEXT = """HloModule jit_step, is_scheduled=true

%fused_gather (param_0: bf16[1000,64], param_1: s32[3]) -> bf16[3,64] {
  %param_0 = bf16[1000,64]{1,0} parameter(0)
  %param_1 = s32[3]{0} parameter(1)
  %bitcast.1 = s32[3,1]{1,0} bitcast(%param_1)
  ROOT %gather.1 = bf16[3,64]{1,0} gather(%param_0, %bitcast.1), offset_dims={1}
}

%fused_update (param_0.1: f32[8,128,16], param_1.1: f32[8,1,16], param_2.1: s32[]) -> f32[8,128,16] {
  %param_0.1 = f32[8,128,16]{2,1,0} parameter(0)
  %param_1.1 = f32[8,1,16]{2,1,0} parameter(1)
  %param_2.1 = s32[] parameter(2)
  %zero = s32[] constant(0)
  ROOT %dus = f32[8,128,16]{2,1,0} dynamic-update-slice(%param_0.1, %param_1.1, %zero, %param_2.1, %zero)
}

%fused_dot (param_0.2: bf16[1,64], param_1.2: bf16[256,64]) -> bf16[1,256] {
  %param_0.2 = bf16[1,64]{1,0} parameter(0)
  %param_1.2 = bf16[256,64]{1,0} parameter(1)
  %dot.9 = f32[1,256]{1,0} dot(%param_0.2, %param_1.2), META(layer_4/mlp/dot_general)
  ROOT %convert.3 = bf16[1,256]{1,0} convert(%dot.9), META(layer_4/mlp/convert_element_type)
}

ENTRY %main (a: bf16[1000,64], b: s32[3], c: f32[8,128,16], d: f32[8,1,16], e: s32[]) -> f32[8,128,16] {
  %a = bf16[1000,64]{1,0} parameter(0)
  %b = s32[3]{0} parameter(1)
  %c = f32[8,128,16]{2,1,0} parameter(2)
  %d = f32[8,1,16]{2,1,0} parameter(3)
  %e = s32[] parameter(4)
  %x = bf16[1,64]{1,0} constant({...})
  %w = bf16[256,64]{1,0} constant({...})
  %loop_gather_fusion.2 = bf16[3,64]{1,0} fusion(%a, %b), kind=kLoop, calls=%fused_gather, META(gather)
  %gemm_fusion_dot.7 = bf16[1,256] fusion(%x, %w), calls=%fused_dot, META(layer_4/mlp/convert_element_type)
  %cublas.1 = (f32[1,256], s8[4096]) custom-call(%x, %w), custom_call_target="__cublas$lt$matmul", META(dot_general)
  %slice.5 = f32[8,2,16]{2,1,0} dynamic-slice(%c, %e, %e, /*index=2*/%e), dynamic_slice_sizes={8,2,16}
  ROOT %update_fusion = f32[8,128,16]{2,1,0} fusion(%c, %d, %e), kind=kLoop, calls=%fused_update
}
"""
TEXT = re.sub(r"META\((\S+)\)", r'metadata={op_name="jit(step)/\1"}', TEXT)


def test_sizes_of_types():
    assert array_bytes("(f32[3,4]{1,0}, s8[16]{0}, pred[])") == (48, 16, 1)
    assert array_bytes("bf16[5,7]{1,0:T(8,128)}") == (70,)
    assert array_bytes("(f8e4m3fn[10], s4[3], u4[8], f64[2])") == (10, 2, 4, 16)
    assert array_bytes("token[]") == ()
    with pytest.raises(ValueError, match="f99"):
        array_bytes("f99[2]")


def test_an_instruction_is_charged_with_what_it_touches():
    program = Program(TEXT)
    assert program.bytes_of("loop_gather_fusion.2") == 3 * 64 * 2 + 3 * 4 + 3 * 64 * 2
    assert program.bytes_of("update_fusion") == 2 * 8 * 16 * 4 + 4  # not the 64 KiB it lies in
    assert program.bytes_of("gemm_fusion_dot.7") == 2 * (64 + 256 * 64 + 256)
    assert program.bytes_of("cublas.1") == 2 * (64 + 256 * 64) + 4 * 256  # without its workspace
    assert program.bytes_of("slice.5") == 2 * 8 * 2 * 16 * 4 + 3 * 4
    assert program.bytes_of("a") is None


def test_names_and_places():
    program = Program(TEXT)
    assert kernel_name("gemm_fusion_dot.7") == "gemm_fusion_dot_7"
    assert program.find("gemm_fusion_dot_7") is program.instructions["gemm_fusion_dot.7"]
    assert program.find("loop_gather_fusion.2").scope == "jit(step)/gather"
    assert program.find("nvjet_sm90") is None
    assert program.scope_of("gemm_fusion_dot.7") == "jit(step)/layer_4/mlp/dot_general"
    assert program.library_calls() == {("jit(step)/dot_general", program.bytes_of("cublas.1")): 1}


def test_a_compiled_product_moves_its_operands_and_its_result(rng):
    m, k, n = (int(size) for size in rng.integers(16, 64, 3))
    text = jax.jit(jnp.matmul).lower(np.ones((m, k), np.float32), np.ones((k, n), np.float32))
    program = Program(text.compile().as_text())
    moved = [program.bytes_of(name) or 0 for name in _executed(program)]
    assert max(moved) == 4 * (m * k + k * n + m * n)


def test_a_compiled_update_in_place_moves_the_row():
    def put(cache, row, at):
        return jax.lax.dynamic_update_slice(cache, row, (at, jnp.int32(0)))

    shapes = np.ones((512, 32), np.float32), np.ones((1, 32), np.float32), np.int32(3)
    text = jax.jit(put, donate_argnums=0).lower(*shapes).compile().as_text()
    program = Program(text)
    moved = [program.bytes_of(name) or 0 for name in _executed(program)]
    assert 2 * 32 * 4 <= sum(moved) <= 2 * 32 * 4 + 64


def _executed(program: Program) -> list[str]:
    """Instructions outside fusions."""
    inside = {one.calls for one in program.instructions.values() if one.calls}
    return [
        name
        for computation, part in program.computations.items()
        if computation not in inside
        for name in part.instructions
    ]
