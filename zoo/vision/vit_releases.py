"""Released checkpoints of ViT and DeiT on the Hugging Face hub, as timm 1.0.31 lists them; notation in
zoo/vision/releases.py.
"""

from __future__ import annotations

from zoo.vision.releases import parse_releases

_TABLE = """
deit3_base_patch16_224: fb_in1k 1000 imagenet 0.9; fb_in22k_ft_in1k 1000 imagenet 1.0
deit3_base_patch16_384: fb_in1k 1000 imagenet 1.0; fb_in22k_ft_in1k 1000 imagenet 1.0
deit3_huge_patch14_224: fb_in1k 1000 imagenet 0.9; fb_in22k_ft_in1k 1000 imagenet 1.0
deit3_large_patch16_224: fb_in1k 1000 imagenet 0.9; fb_in22k_ft_in1k 1000 imagenet 1.0
deit3_large_patch16_384: fb_in1k 1000 imagenet 1.0; fb_in22k_ft_in1k 1000 imagenet 1.0
deit3_medium_patch16_224: fb_in1k 1000 imagenet 0.9; fb_in22k_ft_in1k 1000 imagenet 1.0
deit3_small_patch16_224: fb_in1k 1000 imagenet 0.9; fb_in22k_ft_in1k 1000 imagenet 1.0
deit3_small_patch16_384: fb_in1k 1000 imagenet 1.0; fb_in22k_ft_in1k 1000 imagenet 1.0
deit_base_distilled_patch16_224: fb_in1k 1000 imagenet 0.9
deit_base_distilled_patch16_384: fb_in1k 1000 imagenet 1.0
deit_base_patch16_224: fb_in1k 1000 imagenet 0.9
deit_base_patch16_384: fb_in1k 1000 imagenet 1.0
deit_small_distilled_patch16_224: fb_in1k 1000 imagenet 0.9
deit_small_patch16_224: fb_in1k 1000 imagenet 0.9
deit_tiny_distilled_patch16_224: fb_in1k 1000 imagenet 0.9
deit_tiny_patch16_224: fb_in1k 1000 imagenet 0.9
vit_base_patch14_dinov2: lvd142m 0 imagenet 1.0
vit_base_patch14_reg1_tipsv2: webli 0 none 1.0
vit_base_patch14_reg4_dinov2: lvd142m 0 imagenet 1.0
vit_base_patch16_224: augreg2_in21k_ft_in1k 1000 half 0.9; augreg_in21k_ft_in1k 1000 half 0.9
vit_base_patch16_224: orig_in21k_ft_in1k 1000 half 0.9
vit_base_patch16_224: augreg_in1k 1000 half 0.9; orig_in21k 0 half 0.9; augreg_in21k 21843 half 0.9
vit_base_patch16_224: sam_in1k 1000 half 0.9
vit_base_patch16_224: bamboo 115217 clip 1.0 unstated; dino 0 imagenet 0.9; mae 0 imagenet 0.9 cc-by-nc-4.0
vit_base_patch16_224_miil: in21k 11221 none 0.875 bilinear; in21k_ft_in1k 1000 none 0.875 bilinear
vit_base_patch16_384: augreg_in21k_ft_in1k 1000 half 1.0; orig_in21k_ft_in1k 1000 half 1.0; augreg_in1k 1000 half 1.0
vit_base_patch16_clip_224: laion2b_ft_in12k_in1k 1000 clip 0.95; openai_ft_in12k_in1k 1000 clip 0.95
vit_base_patch16_clip_224: laion2b_ft_in1k 1000 clip 1.0
vit_base_patch16_clip_224: openai_ft_in1k 1000 clip 0.9; laion2b_ft_in12k 11821 clip 0.9; openai_ft_in12k 11821 clip 0.9
vit_base_patch16_clip_224: laion2b 512 clip 1.0
vit_base_patch16_clip_224: laion400m_e32 512 clip 1.0 mit; datacompxl 512 clip 1.0; dfn2b 512 clip 1.0 apple-ascl
vit_base_patch16_clip_224: metaclip_2pt5b 512 clip 1.0 cc-by-nc-4.0; metaclip_400m 512 clip 1.0 cc-by-nc-4.0
vit_base_patch16_clip_224: openai 512 clip 0.9
vit_base_patch16_clip_384: laion2b_ft_in12k_in1k 1000 clip 1.0 squash; openai_ft_in12k_in1k 1000 clip 0.95 squash
vit_base_patch16_clip_384: laion2b_ft_in1k 1000 clip 1.0 squash
vit_base_patch16_clip_384: openai_ft_in1k 1000 clip 1.0 squash
vit_base_patch16_clip_quickgelu_224: metaclip_2pt5b 512 clip 1.0 cc-by-nc-4.0; metaclip_400m 512 clip 1.0 cc-by-nc-4.0
vit_base_patch16_clip_quickgelu_224: openai 512 clip 0.9
vit_base_patch16_plus_clip_240: laion400m_e32 640 clip 1.0 mit
vit_base_patch16_radio_v3: c_radio 0 clip 1.0 nvidia-open-model-license
vit_base_patch16_rpn_224: sw_in1k 1000 half 0.9
vit_base_patch16_siglip_224: v2_webli 0 half 0.9; webli 0 half 0.9
vit_base_patch16_siglip_256: v2_webli 0 half 0.9; webli 0 half 0.9; webli_i18n 0 half 0.9
vit_base_patch16_siglip_384: v2_webli 0 half 0.9; webli 0 half 0.9
vit_base_patch16_siglip_512: v2_webli 0 half 0.9; webli 0 half 0.9
vit_base_patch16_siglip_gap_224: v2_webli 0 half 0.9; webli 0 half 0.9
vit_base_patch16_siglip_gap_256: v2_webli 0 half 0.9; webli 0 half 0.9; webli_i18n 0 half 0.9
vit_base_patch16_siglip_gap_384: v2_webli 0 half 0.9; webli 0 half 0.9
vit_base_patch16_siglip_gap_512: v2_webli 0 half 0.9; webli 0 half 0.9
vit_base_patch32_224: augreg_in21k_ft_in1k 1000 half 0.9; augreg_in1k 1000 half 0.9; orig_in21k 0 half 0.9
vit_base_patch32_224: augreg_in21k 21843 half 0.9
vit_base_patch32_224: sam_in1k 1000 half 0.9
vit_base_patch32_384: augreg_in21k_ft_in1k 1000 half 1.0; augreg_in1k 1000 half 1.0
vit_base_patch32_clip_224: laion2b_ft_in12k_in1k 1000 clip 0.9; laion2b_ft_in1k 1000 clip 0.9
vit_base_patch32_clip_224: openai_ft_in1k 1000 clip 0.9; laion2b 512 clip 0.9
vit_base_patch32_clip_224: laion400m_e32 512 clip 0.9 mit; datacompxl 512 clip 1.0
vit_base_patch32_clip_224: metaclip_2pt5b 512 clip 1.0 cc-by-nc-4.0
vit_base_patch32_clip_224: metaclip_400m 512 clip 1.0 cc-by-nc-4.0; openai 512 clip 0.9
vit_base_patch32_clip_256: datacompxl 512 clip 1.0
vit_base_patch32_clip_384: laion2b_ft_in12k_in1k 1000 clip 1.0; openai_ft_in12k_in1k 1000 clip 0.95 squash
vit_base_patch32_clip_448: laion2b_ft_in12k_in1k 1000 clip 1.0
vit_base_patch32_clip_quickgelu_224: laion400m_e32 512 clip 0.9 mit; metaclip_2pt5b 512 clip 1.0 cc-by-nc-4.0
vit_base_patch32_clip_quickgelu_224: metaclip_400m 512 clip 1.0 cc-by-nc-4.0
vit_base_patch32_clip_quickgelu_224: openai 512 clip 0.9
vit_base_patch32_siglip_256: v2_webli 0 half 0.9
vit_base_patch32_siglip_gap_256: v2_webli 0 half 0.9
vit_base_patch8_224: augreg2_in21k_ft_in1k 1000 half 0.9; augreg_in21k_ft_in1k 1000 half 0.9
vit_base_patch8_224: augreg_in21k 21843 half 0.9; dino 0 imagenet 0.9
vit_betwixt_patch16_reg1_gap_256: sbb_in1k 1000 half 0.95
vit_betwixt_patch16_reg4_gap_256: sbb2_e200_in12k_ft_in1k 1000 half 0.95; sbb_in12k_ft_in1k 1000 half 0.95
vit_betwixt_patch16_reg4_gap_256: sbb_in1k 1000 half 0.95
vit_betwixt_patch16_reg4_gap_256: sbb2_e200_in12k 11821 half 0.95; sbb_in12k 11821 half 0.95
vit_betwixt_patch16_reg4_gap_384: sbb2_e200_in12k_ft_in1k 1000 half 1.0
vit_betwixt_patch32_clip_224: tinyclip_laion400m 512 clip 0.9 mit
vit_dlittle_patch16_reg1_gap_256: sbb_nadamuon_in1k 1000 half 0.95
vit_dpwee_patch16_reg1_gap_256: sbb_nadamuon_in1k 1000 half 0.95; sbb_in1k 1000 half 0.95
vit_dwee_patch16_reg1_gap_256: sbb_nadamuon_in1k 1000 half 0.95; sbb_in1k 1000 half 0.95
vit_giant_patch14_clip_224: laion2b 1024 clip 1.0
vit_giant_patch14_dinov2: lvd142m 0 imagenet 1.0
vit_giant_patch14_reg1_tipsv2: webli 0 none 1.0
vit_giant_patch14_reg4_dinov2: lvd142m 0 imagenet 1.0
vit_giant_patch16_radio_v3: c_radio 0 clip 1.0 nvidia-open-model-license
vit_giantopt_patch16_siglip_256: v2_webli 0 half 0.9
vit_giantopt_patch16_siglip_384: v2_webli 0 half 0.9
vit_giantopt_patch16_siglip_gap_256: v2_webli 0 half 0.9
vit_giantopt_patch16_siglip_gap_384: v2_webli 0 half 0.9
vit_gigantic_patch14_clip_224: laion2b 1280 clip 1.0; metaclip2_worldwide 1280 clip 1.0 cc-by-nc-4.0
vit_gigantic_patch14_clip_224: metaclip_2pt5b 1280 clip 1.0 cc-by-nc-4.0
vit_gigantic_patch14_clip_378: metaclip2_worldwide 1280 clip 1.0 squash cc-by-nc-4.0
vit_gigantic_patch14_clip_quickgelu_224: metaclip_2pt5b 1280 clip 1.0 cc-by-nc-4.0
vit_huge_patch14_224: orig_in21k 0 half 0.9; mae 0 imagenet 0.9 cc-by-nc-4.0
vit_huge_patch14_clip_224: laion2b_ft_in12k_in1k 1000 clip 1.0; laion2b_ft_in1k 1000 clip 1.0
vit_huge_patch14_clip_224: laion2b_ft_in12k 11821 clip 1.0; laion2b 1024 clip 1.0
vit_huge_patch14_clip_224: dfn5b 1024 clip 1.0 apple-ascl; metaclip2_worldwide 1024 clip 1.0 cc-by-nc-4.0
vit_huge_patch14_clip_224: metaclip_2pt5b 1024 clip 1.0 cc-by-nc-4.0
vit_huge_patch14_clip_224: metaclip_altogether 1024 clip 1.0 cc-by-nc-4.0
vit_huge_patch14_clip_336: laion2b_ft_in12k_in1k 1000 clip 1.0 squash
vit_huge_patch14_clip_378: dfn5b 1024 clip 1.0 apple-ascl; metaclip2_worldwide 1024 clip 1.0 squash cc-by-nc-4.0
vit_huge_patch14_clip_quickgelu_224: dfn5b 1024 clip 1.0 apple-ascl; metaclip2_worldwide 1024 clip 1.0 cc-by-nc-4.0
vit_huge_patch14_clip_quickgelu_224: metaclip_2pt5b 1024 clip 1.0 cc-by-nc-4.0
vit_huge_patch14_clip_quickgelu_378: dfn5b 1024 clip 1.0 apple-ascl
vit_huge_patch16_radio_v3: c_radio 0 clip 1.0 nvidia-open-model-license
vit_huge_patch16_radio_v4: c_radio 0 clip 1.0 nvidia-open-model-license
vit_intern300m_patch14_448: ogvl_dist 0 imagenet 1.0 mit; ogvl_2pt5 0 imagenet 1.0
vit_large_patch14_clip_224: laion2b_ft_in12k_in1k 1000 half 1.0; openai_ft_in12k_in1k 1000 clip 1.0
vit_large_patch14_clip_224: laion2b_ft_in1k 1000 half 1.0
vit_large_patch14_clip_224: openai_ft_in1k 1000 clip 1.0; laion2b_ft_in12k 11821 half 1.0
vit_large_patch14_clip_224: openai_ft_in12k 11821 clip 1.0; laion2b 768 half 1.0
vit_large_patch14_clip_224: laion400m_e32 768 clip 1.0 mit; datacompxl 768 clip 1.0; dfn2b_s39b 768 clip 1.0 apple-ascl
vit_large_patch14_clip_224: dfn2b 768 clip 1.0 apple-ascl
vit_large_patch14_clip_224: metaclip_2pt5b 768 clip 1.0 cc-by-nc-4.0; metaclip_400m 768 clip 1.0 cc-by-nc-4.0
vit_large_patch14_clip_224: openai 768 clip 1.0
vit_large_patch14_clip_224: apple_mclip2_dfndr2b 768 clip 1.0 apple-amlr
vit_large_patch14_clip_336: laion2b_ft_in12k_in1k 1000 half 1.0 squash; openai_ft_in12k_in1k 1000 clip 1.0 squash
vit_large_patch14_clip_336: laion2b_ft_in1k 1000 half 1.0 squash
vit_large_patch14_clip_336: openai 768 clip 1.0
vit_large_patch14_clip_quickgelu_224: dfn2b 768 clip 1.0 apple-ascl; metaclip_2pt5b 768 clip 1.0 cc-by-nc-4.0
vit_large_patch14_clip_quickgelu_224: metaclip_400m 768 clip 1.0 cc-by-nc-4.0
vit_large_patch14_clip_quickgelu_224: openai 768 clip 1.0
vit_large_patch14_clip_quickgelu_336: openai 768 clip 1.0
vit_large_patch14_dinov2: lvd142m 0 imagenet 1.0
vit_large_patch14_reg1_tipsv2: webli 0 none 1.0
vit_large_patch14_reg4_dinov2: lvd142m 0 imagenet 1.0
vit_large_patch16_224: augreg_in21k_ft_in1k 1000 half 0.9; orig_in21k 0 half 0.9; augreg_in21k 21843 half 0.9
vit_large_patch16_224: mae 0 imagenet 0.9 cc-by-nc-4.0
vit_large_patch16_384: augreg_in21k_ft_in1k 1000 half 1.0
vit_large_patch16_radio_v3: c_radio 0 clip 1.0 nvidia-open-model-license
vit_large_patch16_siglip_256: v2_webli 0 half 0.9; webli 0 half 0.9
vit_large_patch16_siglip_384: v2_webli 0 half 0.9; webli 0 half 0.9
vit_large_patch16_siglip_512: v2_webli 0 half 0.9
vit_large_patch16_siglip_gap_256: v2_webli 0 half 0.9; webli 0 half 0.9
vit_large_patch16_siglip_gap_384: v2_webli 0 half 0.9; webli 0 half 0.9
vit_large_patch16_siglip_gap_512: v2_webli 0 half 0.9
vit_large_patch32_224: orig_in21k 0 half 0.9
vit_large_patch32_384: orig_in21k_ft_in1k 1000 half 1.0
vit_little_patch16_reg1_gap_256: sbb_in12k_ft_in1k 1000 half 0.95; sbb_in12k 11821 half 0.95
vit_little_patch16_reg4_gap_256: sbb_in1k 1000 half 0.95
vit_medium_patch16_clip_224: tinyclip_yfcc15m 512 clip 0.9 mit
vit_medium_patch16_gap_240: sw_in12k 11821 half 0.95
vit_medium_patch16_gap_256: sw_in12k_ft_in1k 1000 half 0.95
vit_medium_patch16_gap_384: sw_in12k_ft_in1k 1000 half 0.95 squash
vit_medium_patch16_reg1_gap_256: sbb_in1k 1000 half 0.95
vit_medium_patch16_reg4_gap_256: sbb_in12k_ft_in1k 1000 half 0.95; sbb_in1k 1000 half 0.95; sbb_in12k 11821 half 0.95
vit_medium_patch32_clip_224: tinyclip_laion400m 512 clip 0.9 mit
vit_mediumd_patch16_reg4_gap_256: sbb2_e200_in12k_ft_in1k 1000 half 0.95; sbb_in12k_ft_in1k 1000 half 0.95
vit_mediumd_patch16_reg4_gap_256: sbb2_e200_in12k 11821 half 0.95
vit_mediumd_patch16_reg4_gap_256: sbb_in12k 11821 half 0.95
vit_mediumd_patch16_reg4_gap_384: sbb2_e200_in12k_ft_in1k 1000 half 1.0
vit_pwee_patch16_reg1_gap_256: sbb_in1k 1000 half 0.95
vit_small_patch14_dinov2: lvd142m 0 imagenet 1.0
vit_small_patch14_reg4_dinov2: lvd142m 0 imagenet 1.0
vit_small_patch16_224: augreg_in21k_ft_in1k 1000 half 0.9; augreg_in1k 1000 half 0.9; augreg_in21k 21843 half 0.9
vit_small_patch16_224: dino 0 imagenet 0.9
vit_small_patch16_384: augreg_in21k_ft_in1k 1000 half 1.0; augreg_in1k 1000 half 1.0
vit_small_patch32_224: augreg_in21k_ft_in1k 1000 half 0.9; augreg_in21k 21843 half 0.9
vit_small_patch32_384: augreg_in21k_ft_in1k 1000 half 1.0
vit_small_patch8_224: dino 0 imagenet 0.9
vit_so150m2_patch16_reg1_gap_256: sbb_e200_in12k_ft_in1k 1000 half 1.0; sbb_e200_in12k 11821 half 1.0
vit_so150m2_patch16_reg1_gap_384: sbb_e200_in12k_ft_in1k 1000 half 1.0
vit_so150m2_patch16_reg1_gap_448: sbb_e200_in12k_ft_in1k 1000 half 1.0 squash
vit_so150m_patch16_reg4_gap_256: sbb_e250_in12k_ft_in1k 1000 half 0.95; sbb_e250_in12k 11821 half 0.95
vit_so150m_patch16_reg4_gap_384: sbb_e250_in12k_ft_in1k 1000 half 1.0
vit_so400m_patch14_reg1_tipsv2: webli 0 none 1.0
vit_so400m_patch14_siglip_224: v2_webli 0 half 0.9; webli 0 half 0.9
vit_so400m_patch14_siglip_378: v2_webli 0 half 0.9; webli 0 half 0.9; webli_ft_in1k 1000 half 1.0 squash
vit_so400m_patch14_siglip_gap_224: v2_webli 0 half 0.9; webli 0 half 0.9; pali_mix 0 half 0.9; pali_pt 0 half 0.9
vit_so400m_patch14_siglip_gap_224: pali2_3b_pt 0 half 0.9
vit_so400m_patch14_siglip_gap_224: pali2_10b_pt 0 half 0.9
vit_so400m_patch14_siglip_gap_378: v2_webli 0 half 0.9; webli 0 half 1.0; webli_ft_in1k 1000 half 1.0 squash
vit_so400m_patch14_siglip_gap_448: pali_mix 0 half 1.0; pali_pt 0 half 1.0; pali_refcoco_seg 0 half 1.0
vit_so400m_patch14_siglip_gap_448: pali_ocrvqa 0 half 1.0
vit_so400m_patch14_siglip_gap_448: pali2_3b_pt 0 half 1.0; pali2_10b_pt 0 half 1.0; pali2_3b_docci 0 half 1.0
vit_so400m_patch14_siglip_gap_448: pali2_10b_docci 0 half 1.0
vit_so400m_patch14_siglip_gap_896: pali_pt 0 half 1.0; pali_refcoco_seg 0 half 1.0; pali_ocrvqa 0 half 1.0
vit_so400m_patch14_siglip_gap_896: pali2_3b_pt 0 half 1.0
vit_so400m_patch14_siglip_gap_896: pali2_10b_pt 0 half 1.0
vit_so400m_patch16_radio_v4: c_radio 0 clip 1.0 nvidia-open-model-license
vit_so400m_patch16_siglip_256: v2_webli 0 half 0.9; webli_i18n 0 half 0.9
vit_so400m_patch16_siglip_384: v2_webli 0 half 0.9
vit_so400m_patch16_siglip_512: v2_webli 0 half 0.9
vit_so400m_patch16_siglip_gap_256: v2_webli 0 half 0.9; webli_i18n 0 half 0.9
vit_so400m_patch16_siglip_gap_384: v2_webli 0 half 0.9
vit_so400m_patch16_siglip_gap_512: v2_webli 0 half 0.9
vit_tiny_patch16_224: augreg_in21k_ft_in1k 1000 half 0.9; augreg_in21k 21843 half 0.9
vit_tiny_patch16_384: augreg_in21k_ft_in1k 1000 half 1.0
vit_wee_patch16_reg1_gap_256: sbb_in1k 1000 half 0.95
vit_xsmall_patch16_clip_224: tinyclip_yfcc15m 512 clip 0.9 mit
"""

RELEASES = parse_releases(_TABLE)
