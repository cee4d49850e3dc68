"""The kernel benchmark. To add an op: a file of its name with an `OP`, and a line here."""

from bench.kernels import (
    add_noise,
    attention,
    gate_residual,
    geglu,
    group_norm_silu,
    layer_norm_modulate,
    philox_normal,
    qk_norm_rope,
    sampler_step,
    timestep_embedding,
)

OPS = {
    "add_noise": add_noise.OP,
    "attention": attention.OP,
    "gate_residual": gate_residual.OP,
    "geglu": geglu.OP,
    "group_norm_silu": group_norm_silu.OP,
    "layer_norm_modulate": layer_norm_modulate.OP,
    "philox_normal": philox_normal.OP,
    "qk_norm_rope": qk_norm_rope.OP,
    "sampler_step": sampler_step.OP,
    "timestep_embedding": timestep_embedding.OP,
}
