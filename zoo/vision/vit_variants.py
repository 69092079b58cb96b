"""Hyper-parameters of the ViTs that timm 1.0.31 names, in which they differ from :class:`zoo.vision.vit.ViTConfig`."""

from __future__ import annotations

from typing import Any

Options = dict[str, Any]

TINY: Options = {"features": 192, "depth": 12, "num_heads": 3}
WEE: Options = {"features": 256, "depth": 14, "num_heads": 4, "mlp_ratio": 5.0}
XSMALL: Options = {"features": 256, "depth": 10, "num_heads": 4}
LITTLE: Options = {"features": 320, "depth": 14, "num_heads": 5, "mlp_ratio": 5.6}
SMALL: Options = {"features": 384, "depth": 12, "num_heads": 6}
MEDIUM: Options = {"features": 512, "depth": 12, "num_heads": 8}
MEDIUM_DEEP: Options = MEDIUM | {"depth": 20}
BETWIXT: Options = {"features": 640, "depth": 12, "num_heads": 10}
BASE: Options = {"features": 768, "depth": 12, "num_heads": 12}
BASE_PLUS: Options = {"features": 896, "depth": 12, "num_heads": 14}
SO150M: Options = {"features": 896, "depth": 18, "num_heads": 14, "mlp_ratio": 2.572}
SO150M2: Options = {"features": 832, "depth": 21, "num_heads": 13, "mlp_ratio": 34 / 13}
LARGE: Options = {"features": 1024, "depth": 24, "num_heads": 16}
SO400M: Options = {"features": 1152, "depth": 27, "num_heads": 16, "mlp_ratio": 3.7362}
HUGE: Options = {"features": 1280, "depth": 32, "num_heads": 16}
GIANT: Options = {"features": 1408, "depth": 40, "num_heads": 16, "mlp_ratio": 48 / 11}
GIANT_OPT: Options = {"features": 1536, "depth": 40, "num_heads": 16}
GIANT_WIDE: Options = {"features": 1536, "depth": 40, "num_heads": 24}
GIGANTIC: Options = {"features": 1664, "depth": 48, "num_heads": 16, "mlp_ratio": 64 / 13}

SWIGLU: Options = {"mlp": "swiglu", "mlp_ratio": 8 / 3}
GAP: Options = {"class_token": False, "pool": "average"}
SW_GAP: Options = GAP | {"qkv_bias": False, "layer_scale": 1e-6}
RES_POST: Options = {"order": "res_post", "qkv_bias": False, "layer_scale": 1e-5, "norm_after_pool": True}
# Of timm's author: registers, which the average leaves out, and a norm after the average.
_SBB: Options = GAP | {"image_size": 256, "norm_after_pool": True, "layer_scale": 1e-5}
SBB: Options = _SBB | {"registers": 1, "prefix_positions": "none"}
SBB_2: Options = _SBB | {"registers": 1, "qkv_bias": False}
SBB_4: Options = SBB | {"registers": 4}
# MLPs beside the attention, as in ViT-22B (Dehghani et al., 2023).
_XP: Options = {"norm": "rms", "qk_norm": True, "qkv_bias": False, "pre_norm": True, "prefix_positions": "none"}
XP: Options = _XP | {"arrangement": "joined"}
JOINED_16: Options = {"arrangement": "joined", "depth": 16}
DIFFERENTIAL: Options = {"name": "differential_attention"}
CLIP: Options = {"pre_norm": True, "norm_epsilon": 1e-5}
QUICK: Options = CLIP | {"mlp": "quick_gelu"}
_DINO: Options = {"patch_size": 14, "image_size": 518, "layer_scale": 1e-5, "num_classes": 0}
DINOV2: Options = _DINO | {"antialias": False}  # the authors began to antialias with the registers
DINOV2_REG: Options = _DINO | {"registers": 4, "prefix_positions": "none"}
TIPS: Options = _DINO | {"image_size": 448, "registers": 1, "prefix_positions": "none", "layer_scale": 1.0}
_RADIO: Options = {"image_size": 512, "prefix_positions": "none", "final_norm": False, "num_classes": 0}
RADIO_V3: Options = _RADIO | {"registers": 7}
RADIO_V4: Options = _RADIO | {"registers": 9}
INTERN: Options = {"patch_size": 14, "image_size": 448, "final_norm": False, "layer_scale": 0.1, "num_classes": 0}
SIGLIP: Options = {"class_token": False, "pool": "attention", "num_classes": 0}
SIGLIP_GAP: Options = GAP | {"num_classes": 0}
SIGLIP2: Options = SIGLIP | {"mlp": "gelu_tanh"}
SIGLIP2_GAP: Options = SIGLIP_GAP | {"mlp": "gelu_tanh"}
DEIT3: Options = {"prefix_positions": "none", "layer_scale": 1e-6}

VARIANTS: dict[str, Options] = {
    # Vision Transformer, and AugReg's.
    "vit_tiny_patch16_224": TINY,
    "vit_tiny_patch16_384": TINY | {"image_size": 384},
    "vit_small_patch8_224": SMALL | {"patch_size": 8, "num_classes": 0},
    "vit_small_patch16_224": SMALL,
    "vit_small_patch16_384": SMALL | {"image_size": 384},
    "vit_small_patch32_224": SMALL | {"patch_size": 32},
    "vit_small_patch32_384": SMALL | {"patch_size": 32, "image_size": 384},
    "vit_base_patch16_224": BASE,
    "vit_base_patch16_384": BASE | {"image_size": 384},
    "vit_base_patch32_224": BASE | {"patch_size": 32},
    "vit_base_patch32_384": BASE | {"patch_size": 32, "image_size": 384},
    "vit_base_patch8_224": BASE | {"patch_size": 8},
    "vit_large_patch16_224": LARGE,
    "vit_large_patch16_384": LARGE | {"image_size": 384},
    "vit_large_patch32_224": LARGE | {"patch_size": 32, "num_classes": 0},
    "vit_large_patch32_384": LARGE | {"patch_size": 32, "image_size": 384},
    "vit_large_patch14_224": LARGE | {"patch_size": 14},
    "vit_huge_patch14_224": HUGE | {"patch_size": 14, "num_classes": 0},
    "vit_giant_patch14_224": GIANT | {"patch_size": 14},
    "vit_gigantic_patch14_224": GIGANTIC | {"patch_size": 14},
    "vit_base_patch16_224_miil": BASE | {"qkv_bias": False, "num_classes": 11221},
    "vit_small_patch16_36x1_224": SMALL | {"depth": 36, "layer_scale": 1e-5},
    "vit_base_patch16_plus_240": BASE_PLUS | {"image_size": 240, "layer_scale": 1e-5},
    "vit_base_patch32_plus_256": BASE_PLUS | {"patch_size": 32, "image_size": 256, "layer_scale": 1e-5},
    "vit_small_patch16_18x2_224": SMALL | {"depth": 18, "layer_scale": 1e-5, "arrangement": "pairs"},
    "vit_base_patch16_18x2_224": BASE | {"depth": 18, "layer_scale": 1e-5, "arrangement": "pairs"},
    "vit_base_patch16_xp_224": BASE | XP,
    "vit_large_patch14_xp_224": LARGE | XP | {"patch_size": 14},
    "vit_huge_patch14_xp_224": HUGE | XP | {"patch_size": 14},
    "vit_base_patch16_rpn_224": BASE | GAP | RES_POST,
    # Averages instead of a class token; I-JEPA.
    "vit_medium_patch16_gap_240": MEDIUM | SW_GAP | {"image_size": 240, "num_classes": 11821},
    "vit_medium_patch16_gap_256": MEDIUM | SW_GAP | {"image_size": 256},
    "vit_medium_patch16_gap_384": MEDIUM | SW_GAP | {"image_size": 384},
    "vit_betwixt_patch16_gap_256": BETWIXT | SW_GAP | {"image_size": 256},
    "vit_base_patch16_gap_224": BASE | GAP | {"num_heads": 16},
    "vit_giant_patch16_gap_224": GIANT | GAP | {"num_classes": 0},
    "vit_huge_patch14_gap_224": HUGE | GAP | {"patch_size": 14, "num_classes": 0},
    "vit_huge_patch16_gap_448": HUGE | GAP | {"image_size": 448, "num_classes": 0},
    # Registers and averages.
    "vit_wee_patch16_reg1_gap_256": WEE | SBB,
    "vit_little_patch16_reg1_gap_256": LITTLE | SBB,
    "vit_medium_patch16_reg1_gap_256": MEDIUM | SBB,
    "vit_betwixt_patch16_reg1_gap_256": BETWIXT | SBB,
    "vit_little_patch16_reg4_gap_256": LITTLE | SBB_4,
    "vit_medium_patch16_reg4_gap_256": MEDIUM | SBB_4,
    "vit_mediumd_patch16_reg4_gap_256": MEDIUM_DEEP | SBB_4,
    "vit_betwixt_patch16_reg4_gap_256": BETWIXT | SBB_4,
    "vit_base_patch16_reg4_gap_256": BASE | SBB_4 | {"layer_scale": None},
    "vit_mediumd_patch16_reg4_gap_384": MEDIUM_DEEP | SBB_4 | {"image_size": 384},
    "vit_betwixt_patch16_reg4_gap_384": BETWIXT | SBB_4 | {"image_size": 384},
    "vit_so150m_patch16_reg4_map_256": SO150M | GAP | {"image_size": 256, "registers": 4, "pool": "attention"},
    "vit_so150m_patch16_reg4_gap_256": SO150M | GAP | {"image_size": 256, "registers": 4},
    "vit_so150m_patch16_reg4_gap_384": SO150M | GAP | {"image_size": 384, "registers": 4},
    "vit_so150m2_patch16_reg1_gap_256": SO150M2 | SBB_2,
    "vit_so150m2_patch16_reg1_gap_384": SO150M2 | SBB_2 | {"image_size": 384},
    "vit_so150m2_patch16_reg1_gap_448": SO150M2 | SBB_2 | {"image_size": 448},
    "vit_dwee_patch16_reg1_gap_256": WEE | SBB | {"mixer": DIFFERENTIAL},
    "vit_pwee_patch16_reg1_gap_256": WEE | SBB | JOINED_16,
    "vit_dpwee_patch16_reg1_gap_256": WEE | SBB | JOINED_16 | {"mixer": DIFFERENTIAL | {"out_bias": False}},
    "vit_dlittle_patch16_reg1_gap_256": LITTLE | SBB | {"mixer": DIFFERENTIAL},
    # CLIP.
    "vit_xsmall_patch16_clip_224": XSMALL | CLIP | {"num_classes": 512},
    "vit_medium_patch16_clip_224": MEDIUM | CLIP | {"num_classes": 512},
    "vit_medium_patch32_clip_224": MEDIUM | CLIP | {"patch_size": 32, "num_classes": 512},
    "vit_betwixt_patch32_clip_224": BETWIXT | CLIP | {"patch_size": 32, "num_classes": 512},
    "vit_base_patch32_clip_224": BASE | CLIP | {"patch_size": 32},
    "vit_base_patch32_clip_256": BASE | CLIP | {"patch_size": 32, "image_size": 256, "num_classes": 512},
    "vit_base_patch32_clip_384": BASE | CLIP | {"patch_size": 32, "image_size": 384},
    "vit_base_patch32_clip_448": BASE | CLIP | {"patch_size": 32, "image_size": 448},
    "vit_base_patch16_clip_224": BASE | CLIP,
    "vit_base_patch16_clip_384": BASE | CLIP | {"image_size": 384},
    "vit_base_patch16_plus_clip_240": BASE_PLUS | CLIP | {"image_size": 240, "num_classes": 640},
    "vit_large_patch14_clip_224": LARGE | CLIP | {"patch_size": 14},
    "vit_large_patch14_clip_336": LARGE | CLIP | {"patch_size": 14, "image_size": 336},
    "vit_huge_patch14_clip_224": HUGE | CLIP | {"patch_size": 14},
    "vit_huge_patch14_clip_336": HUGE | CLIP | {"patch_size": 14, "image_size": 336},
    "vit_huge_patch14_clip_378": HUGE | CLIP | {"patch_size": 14, "image_size": 378, "num_classes": 1024},
    "vit_giant_patch14_clip_224": GIANT | CLIP | {"patch_size": 14, "num_classes": 1024},
    "vit_gigantic_patch14_clip_224": GIGANTIC | CLIP | {"patch_size": 14, "num_classes": 1280},
    "vit_gigantic_patch14_clip_378": GIGANTIC | CLIP | {"patch_size": 14, "image_size": 378, "num_classes": 1280},
    "vit_base_patch16_clip_quickgelu_224": BASE | QUICK | {"num_classes": 512},
    "vit_base_patch32_clip_quickgelu_224": BASE | QUICK | {"patch_size": 32, "num_classes": 512},
    "vit_large_patch14_clip_quickgelu_224": LARGE | QUICK | {"patch_size": 14, "num_classes": 768},
    "vit_large_patch14_clip_quickgelu_336": LARGE | QUICK | {"patch_size": 14, "image_size": 336, "num_classes": 768},
    "vit_huge_patch14_clip_quickgelu_224": HUGE | QUICK | {"patch_size": 14, "num_classes": 1024},
    "vit_huge_patch14_clip_quickgelu_378": HUGE | QUICK | {"patch_size": 14, "image_size": 378, "num_classes": 1024},
    "vit_gigantic_patch14_clip_quickgelu_224": GIGANTIC | QUICK | {"patch_size": 14, "num_classes": 1280},
    # DINOv2, TIPS, RADIO, InternViT.
    "vit_small_patch14_dinov2": SMALL | DINOV2,
    "vit_small_patch14_reg4_dinov2": SMALL | DINOV2_REG,
    "vit_base_patch14_dinov2": BASE | DINOV2,
    "vit_base_patch14_reg4_dinov2": BASE | DINOV2_REG,
    "vit_large_patch14_dinov2": LARGE | DINOV2,
    "vit_large_patch14_reg4_dinov2": LARGE | DINOV2_REG,
    "vit_giant_patch14_dinov2": GIANT_WIDE | DINOV2 | SWIGLU,
    "vit_giant_patch14_reg4_dinov2": GIANT_WIDE | DINOV2_REG | SWIGLU,
    "vit_base_patch14_reg1_tipsv2": BASE | TIPS,
    "vit_large_patch14_reg1_tipsv2": LARGE | TIPS,
    "vit_so400m_patch14_reg1_tipsv2": SO400M | TIPS | {"mlp_ratio": 4304 / 1152},
    "vit_giant_patch14_reg1_tipsv2": GIANT_WIDE | TIPS | SWIGLU,
    "vit_base_patch16_radio_v3": BASE | RADIO_V3 | {"layer_scale": 1e-5},
    "vit_large_patch16_radio_v3": LARGE | RADIO_V3 | {"layer_scale": 1e-5},
    "vit_huge_patch16_radio_v3": HUGE | RADIO_V3,
    "vit_giant_patch16_radio_v3": GIANT_WIDE | RADIO_V3,
    "vit_so400m_patch16_radio_v4": SO400M | RADIO_V4 | {"mlp_ratio": 4304 / 1152},
    "vit_huge_patch16_radio_v4": HUGE | RADIO_V4,
    "vit_intern300m_patch14_448": LARGE | INTERN,
    # SigLIP.
    "vit_base_patch32_siglip_256": BASE | SIGLIP2 | {"patch_size": 32, "image_size": 256},
    "vit_base_patch32_siglip_gap_256": BASE | SIGLIP2_GAP | {"patch_size": 32, "image_size": 256},
    "vit_base_patch16_siglip_224": BASE | SIGLIP,
    "vit_base_patch16_siglip_256": BASE | SIGLIP | {"image_size": 256},
    "vit_base_patch16_siglip_384": BASE | SIGLIP | {"image_size": 384},
    "vit_base_patch16_siglip_512": BASE | SIGLIP | {"image_size": 512},
    "vit_base_patch16_siglip_gap_224": BASE | SIGLIP_GAP,
    "vit_base_patch16_siglip_gap_256": BASE | SIGLIP_GAP | {"image_size": 256},
    "vit_base_patch16_siglip_gap_384": BASE | SIGLIP_GAP | {"image_size": 384},
    "vit_base_patch16_siglip_gap_512": BASE | SIGLIP_GAP | {"image_size": 512},
    "vit_large_patch16_siglip_256": LARGE | SIGLIP | {"image_size": 256},
    "vit_large_patch16_siglip_384": LARGE | SIGLIP | {"image_size": 384},
    "vit_large_patch16_siglip_512": LARGE | SIGLIP2 | {"image_size": 512},
    "vit_large_patch16_siglip_gap_256": LARGE | SIGLIP_GAP | {"image_size": 256},
    "vit_large_patch16_siglip_gap_384": LARGE | SIGLIP_GAP | {"image_size": 384},
    "vit_large_patch16_siglip_gap_512": LARGE | SIGLIP2_GAP | {"image_size": 512},
    "vit_so400m_patch14_siglip_224": SO400M | SIGLIP | {"patch_size": 14},
    "vit_so400m_patch14_siglip_378": SO400M | SIGLIP | {"patch_size": 14, "image_size": 378},
    "vit_so400m_patch14_siglip_gap_224": SO400M | SIGLIP_GAP | {"patch_size": 14},
    "vit_so400m_patch14_siglip_gap_378": SO400M | SIGLIP_GAP | {"patch_size": 14, "image_size": 378},
    "vit_so400m_patch14_siglip_gap_448": SO400M | SIGLIP_GAP | {"patch_size": 14, "image_size": 448},
    "vit_so400m_patch14_siglip_gap_896": SO400M | SIGLIP_GAP | {"patch_size": 14, "image_size": 896},
    "vit_so400m_patch16_siglip_256": SO400M | SIGLIP2 | {"image_size": 256},
    "vit_so400m_patch16_siglip_384": SO400M | SIGLIP2 | {"image_size": 384},
    "vit_so400m_patch16_siglip_512": SO400M | SIGLIP2 | {"image_size": 512},
    "vit_so400m_patch16_siglip_gap_256": SO400M | SIGLIP2_GAP | {"image_size": 256},
    "vit_so400m_patch16_siglip_gap_384": SO400M | SIGLIP2_GAP | {"image_size": 384},
    "vit_so400m_patch16_siglip_gap_512": SO400M | SIGLIP2_GAP | {"image_size": 512},
    "vit_giantopt_patch16_siglip_256": GIANT_OPT | SIGLIP2 | {"image_size": 256},
    "vit_giantopt_patch16_siglip_384": GIANT_OPT | SIGLIP2 | {"image_size": 384},
    "vit_giantopt_patch16_siglip_gap_256": GIANT_OPT | SIGLIP2_GAP | {"image_size": 256},
    "vit_giantopt_patch16_siglip_gap_384": GIANT_OPT | SIGLIP2_GAP | {"image_size": 384},
    # DeiT.
    "deit_tiny_patch16_224": TINY,
    "deit_small_patch16_224": SMALL,
    "deit_base_patch16_224": BASE,
    "deit_base_patch16_384": BASE | {"image_size": 384},
    "deit_tiny_distilled_patch16_224": TINY | {"distilled": True},
    "deit_small_distilled_patch16_224": SMALL | {"distilled": True},
    "deit_base_distilled_patch16_224": BASE | {"distilled": True},
    "deit_base_distilled_patch16_384": BASE | {"image_size": 384, "distilled": True},
    "deit3_small_patch16_224": SMALL | DEIT3,
    "deit3_medium_patch16_224": MEDIUM | DEIT3,
    "deit3_base_patch16_224": BASE | DEIT3,
    "deit3_large_patch16_224": LARGE | DEIT3,
    "deit3_small_patch16_384": SMALL | DEIT3 | {"image_size": 384},
    "deit3_base_patch16_384": BASE | DEIT3 | {"image_size": 384},
    "deit3_large_patch16_384": LARGE | DEIT3 | {"image_size": 384},
    "deit3_huge_patch14_224": HUGE | DEIT3 | {"patch_size": 14},
}
