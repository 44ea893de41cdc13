"""Official GPViT checkpoints: the kinds of files, and the conversion of their parameter names.

The official files were written by mmcv: ``{"meta": {...}, "state_dict": {...}}``. Their
``state_dict`` begins with ``backbone.`` and continues with ``neck.``, ``rpn_head.``, ``roi_head.``,
``bbox_head.``, ``decode_head.``, ``auxiliary_head.`` or ``head.``, depending on the model.

A table of names maps templates of official names to templates of ours. A template has placeholders:

===========  =========================================================================
``#``        an index, such as that of a block; the same number on both sides
``#+2``      an index that is 2 larger than the plain number (``#-2``: 2 smaller)
``*``        the last component of a name (``weight``, ``bias``, ``running_mean``, ...)
===========  =========================================================================

For example, ``neck.lateral_convs.#.conv.*`` -> ``backbone.fpn_lateral#+2.*`` renames
``neck.lateral_convs.0.conv.weight`` to ``backbone.fpn_lateral2.weight``. A rule applies if its
template matches the complete name and no index becomes negative; the first rule that applies
decides. Therefore exceptions stand before the general rule. The same tables are used in the inverse
direction, where our templates are matched.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES
from torch import Tensor

from ..model_zoo import ADE20K_CLASSES, IMAGENET_CLASSES
from ..utils.errors import preview
from ..utils.text import short_repr
from . import describe
from .describe import Architecture, architecture_of, size_name

COCO_CLASSES = [category["name"] for category in COCO_CATEGORIES if category["isthing"]]

GROUP_BLOCKS = {1, 4, 7, 10}  # indices of the group propagation blocks, the same in all sizes

Names = dict[str, str]

BACKBONE: Names = {
    "pos_embed": "pos_embed",
    # Each of these convolutions is an nn.Sequential of convolution, batch norm and ReLU there;
    # patch_embed.convs holds two of them in one list: (0, 1, 2) and (3, 4, 5).
    "patch_embed.stem.0.*": "patch_embed.stem.*",
    "patch_embed.stem.1.*": "patch_embed.stem.norm.*",
    "patch_embed.convs.0.*": "patch_embed.convs.0.*",
    "patch_embed.convs.1.*": "patch_embed.convs.0.norm.*",
    "patch_embed.convs.3.*": "patch_embed.convs.1.*",
    "patch_embed.convs.4.*": "patch_embed.convs.1.norm.*",
    "patch_embed.projection.*": "patch_embed.projection.*",
    # Window blocks. attns.0 and attns.1 attend within vertical and horizontal stripes.
    "layers.#.norm1.*": "blocks.#.norm1.*",
    "layers.#.qkv.*": "blocks.#.attn.qkv.*",
    "layers.#.attns.0.get_v.*": "blocks.#.attn.lepe_vertical.*",
    "layers.#.attns.1.get_v.*": "blocks.#.attn.lepe_horizontal.*",
    "layers.#.proj.*": "blocks.#.attn.proj.*",
    "layers.#.norm2.*": "blocks.#.norm2.*",
    "layers.#.ffn.layers.0.0.*": "blocks.#.mlp.fc1.*",
    "layers.#.ffn.layers.1.*": "blocks.#.mlp.fc2.*",
    # Group propagation blocks. "blocks.#.conv.*" is the depthwise convolution of either kind of
    # block, which the official code calls dw in window blocks and dwconv.0 in the others. In the
    # inverse direction only the index determines the name, so these blocks are listed first.
    **{f"layers.{i}.dwconv.0.*": f"blocks.{i}.conv.*" for i in GROUP_BLOCKS},
    "layers.#.dw.*": "blocks.#.conv.*",
    "layers.#.group_token": "blocks.#.group_token",
    "layers.#.group_layer.norm_query.*": "blocks.#.group.norm_query.*",
    "layers.#.group_layer.norm_key.*": "blocks.#.group.norm_key.*",
    "layers.#.group_layer.attn.k_proj.*": "blocks.#.group.key.*",
    "layers.#.mixer.layers.0.norm1.*": "blocks.#.mixer.norm1.*",
    "layers.#.mixer.layers.0.patch_mixer.0.*": "blocks.#.mixer.token_mlp.fc1.*",
    "layers.#.mixer.layers.0.patch_mixer.3.*": "blocks.#.mixer.token_mlp.fc2.*",
    "layers.#.mixer.layers.0.norm2.*": "blocks.#.mixer.norm2.*",
    "layers.#.mixer.layers.0.channel_mixer.0.*": "blocks.#.mixer.channel_mlp.fc1.*",
    "layers.#.mixer.layers.0.channel_mixer.3.*": "blocks.#.mixer.channel_mlp.fc2.*",
    "layers.#.un_group_layer.norm_query.*": "blocks.#.ungroup.norm_query.*",
    "layers.#.un_group_layer.norm_key.*": "blocks.#.ungroup.norm_key.*",
    "layers.#.un_group_layer.attn.q_proj.*": "blocks.#.ungroup.query.*",
    "layers.#.un_group_layer.attn.k_proj.*": "blocks.#.ungroup.key.*",
    "layers.#.un_group_layer.attn.v_proj.*": "blocks.#.ungroup.value.*",
    "layers.#.un_group_layer.attn.proj.*": "blocks.#.ungroup.out.*",
    "layers.#.un_group_layer.proj.*": "blocks.#.ungroup.join.*",
    "layers.#.un_group_layer.norm2.*": "blocks.#.ungroup.norm2.*",
    "layers.#.un_group_layer.ffn.layers.0.0.*": "blocks.#.ungroup.mlp.fc1.*",
    "layers.#.un_group_layer.ffn.layers.1.*": "blocks.#.ungroup.mlp.fc2.*",
    "layers.#.dwconv.1.*": "blocks.#.conv.norm.*",
    # The norms of the outputs: ln1 of the last one, norm2 of the one after block 2, and so on.
    "ln1.*": "out_norms.last_feat.*",
    "norm#.*": "out_norms.block#.*",
}


def _attention(theirs: str, ours: str) -> Names:
    """Return the rules of a deformable attention and its norms, below the given templates."""
    return {
        f"{theirs}.query_norm.*": f"{ours}.norm_query.*",
        f"{theirs}.feat_norm.*": f"{ours}.norm_feature.*",
        f"{theirs}.attn.sampling_offsets.*": f"{ours}.attn.offsets.*",
        f"{theirs}.attn.attention_weights.*": f"{ours}.attn.weights.*",
        f"{theirs}.attn.value_proj.*": f"{ours}.attn.value.*",
        f"{theirs}.attn.output_proj.*": f"{ours}.attn.out.*",
    }


def _extractor(theirs: str, ours: str) -> Names:
    """Return the rules of an extractor: deformable attention and a convolutional FFN."""
    return _attention(theirs, ours) | {
        f"{theirs}.ffn_norm.*": f"{ours}.norm_ffn.*",
        f"{theirs}.ffn.fc1.*": f"{ours}.ffn.fc1.*",
        f"{theirs}.ffn.dwconv.dwconv.*": f"{ours}.ffn.conv.*",
        f"{theirs}.ffn.fc2.*": f"{ours}.ffn.fc2.*",
    }


ADAPTER: Names = {
    "level_embed": "level_embed",
    # spm.stem is one list of three times convolution, batch norm and ReLU.
    "spm.stem.0.*": "spatial_prior.stem.0.*",
    "spm.stem.1.*": "spatial_prior.stem.0.norm.*",
    "spm.stem.3.*": "spatial_prior.stem.1.*",
    "spm.stem.4.*": "spatial_prior.stem.1.norm.*",
    "spm.stem.6.*": "spatial_prior.stem.2.*",
    "spm.stem.7.*": "spatial_prior.stem.2.norm.*",
    # conv2, conv3, conv4 -> convs.0, convs.1, convs.2.
    "spm.conv#.0.*": "spatial_prior.convs.#-2.*",
    "spm.conv#.1.*": "spatial_prior.convs.#-2.norm.*",
    # fc1 projects the features of stride 4, fc2 to fc4 those of the three levels that interact.
    # With fc1 the second rule would give the index -1, so it does not apply.
    "spm.fc1.*": "spatial_prior.projection4.*",
    "spm.fc#.*": "spatial_prior.projections.#-2.*",
    "interactions.#.injector.gamma": "injectors.#.gamma",
    **_attention("interactions.#.injector", "injectors.#"),
    # There are 4 interactions, each with an extractor, and the last has two extra extractors,
    # which are ours 4 and 5. In the inverse direction, extractors 0 to 3 would get a negative
    # index by the first of these rules, so the second applies to them.
    **_extractor("interactions.3.extra_extractors.#", "extractors.#+4"),
    **_extractor("interactions.#.extractor", "extractors.#"),
    "up.*": "up.*",
    "ad_norm#.*": "norms.f#+1.*",
}


def _below(theirs: str, ours: str, names: Names) -> Names:
    """Return the same rules for names that begin with these prefixes."""
    return {theirs + their_name: ours + our_name for their_name, our_name in names.items()}


def _pyramid(first_level: int) -> Names:
    """Return the rules of an FPN, whose levels are numbered from 0 there, by log2(stride) here."""
    return {
        "neck.lateral_convs.#.conv.*": f"backbone.fpn_lateral#+{first_level}.*",
        "neck.lateral_convs.#.bn.*": f"backbone.fpn_lateral#+{first_level}.norm.*",
        "neck.fpn_convs.#.conv.*": f"backbone.fpn_output#+{first_level}.*",
        "neck.fpn_convs.#.bn.*": f"backbone.fpn_output#+{first_level}.norm.*",
    }


# The adapter contains the backbone as its attribute ``net``; in the official files, the
# parameters of both are directly below "backbone.".
WITH_ADAPTER: Names = _below("backbone.", "backbone.bottom_up.", ADAPTER) | _below(
    "backbone.", "backbone.bottom_up.net.", BACKBONE
)


def _subnet(theirs: str, ours: str) -> Names:
    """Return the rules of a RetinaNet subnet of four convolutions.

    In Detectron2's nn.Sequential a ReLU follows each of them, so they are its entries 0, 2, 4, 6.
    """
    return {
        f"bbox_head.{theirs}_convs.{i}.conv.*": f"head.{ours}_subnet.{2 * i}.*" for i in range(4)
    }


MASK_RCNN: Names = {
    **WITH_ADAPTER,
    **_pyramid(first_level=2),
    "rpn_head.rpn_conv.*": "proposal_generator.rpn_head.conv.*",
    "rpn_head.rpn_cls.*": "proposal_generator.rpn_head.objectness_logits.*",
    "rpn_head.rpn_reg.*": "proposal_generator.rpn_head.anchor_deltas.*",
    "roi_head.bbox_head.shared_convs.#.conv.*": "roi_heads.box_head.conv#+1.*",
    "roi_head.bbox_head.shared_convs.#.bn.*": "roi_heads.box_head.conv#+1.norm.*",
    "roi_head.bbox_head.shared_fcs.#.*": "roi_heads.box_head.fc#+1.*",
    "roi_head.bbox_head.fc_cls.*": "roi_heads.box_predictor.cls_score.*",
    "roi_head.bbox_head.fc_reg.*": "roi_heads.box_predictor.bbox_pred.*",
    "roi_head.mask_head.convs.#.conv.*": "roi_heads.mask_head.mask_fcn#+1.*",
    "roi_head.mask_head.upsample.*": "roi_heads.mask_head.deconv.*",
    "roi_head.mask_head.conv_logits.*": "roi_heads.mask_head.predictor.*",
}

RETINANET: Names = {
    **WITH_ADAPTER,
    # The list of FPN convolutions continues with those of p6 and p7, which Detectron2 keeps apart.
    "neck.fpn_convs.3.conv.*": "backbone.top_block.p6.*",
    "neck.fpn_convs.3.bn.*": "backbone.top_block.p6.norm.*",
    "neck.fpn_convs.4.conv.*": "backbone.top_block.p7.*",
    "neck.fpn_convs.4.bn.*": "backbone.top_block.p7.norm.*",
    **_pyramid(first_level=3),
    **_subnet("cls", "cls"),
    **_subnet("reg", "bbox"),
    "bbox_head.retina_cls.*": "head.cls_score.*",
    "bbox_head.retina_reg.*": "head.bbox_pred.*",
}


def _conv(theirs: str, ours: str) -> Names:
    """Return the rules of a convolution with a batch norm in a segmentation head."""
    return {
        f"{theirs}.conv.*": f"sem_seg_head.{ours}.*",
        f"{theirs}.bn.*": f"sem_seg_head.{ours}.norm.*",
    }


SEGFORMER: Names = {
    **_below("backbone.", "backbone.", BACKBONE),
    **_conv("decode_head.convs.#", "convs.#"),
    **_conv("decode_head.fusion_conv", "fusion"),
    "decode_head.conv_seg.*": "sem_seg_head.predictor.*",
}

UPERNET: Names = {
    **_below("backbone.", "backbone.", BACKBONE),
    **_conv("decode_head.psp_modules.#.1", "pooled.#"),
    **_conv("decode_head.bottleneck", "bottleneck"),
    **_conv("decode_head.lateral_convs.#", "laterals.#"),
    **_conv("decode_head.fpn_convs.#", "outputs.#"),
    **_conv("decode_head.fpn_bottleneck", "fusion"),
    "decode_head.conv_seg.*": "sem_seg_head.predictor.*",
    **_conv("auxiliary_head.convs.0", "auxiliary_conv"),
    "auxiliary_head.conv_seg.*": "sem_seg_head.auxiliary_predictor.*",
}


CLASSIFIER: Names = {
    **_below("backbone.", "backbone.", BACKBONE),
    "neck.group_token": "neck.query",
    "neck.norm_query.*": "neck.norm_query.*",
    "neck.attn.k_proj.*": "neck.key.*",
    "head.fc.*": "head.*",
}

POOLING_OF_SIZES = {"L1": "attention", "L2": "attention", "L3": "mean", "L4": "mean"}

# Prefixes of official names outside of the backbones of segmentation models and classifiers.
HEADS = ("decode_head.", "auxiliary_head.", "neck.", "head.")


@dataclass(frozen=True)
class Kind:
    """A kind of official checkpoint.

    Attributes:
        name: for messages.
        prefix: of names that only files of this kind contain.
        names: the table of names.
        architecture: of the model.
        config: template of the matching config in configs/published, filled with the size in lower
            case.
    """

    name: str
    prefix: str
    names: Names
    architecture: Architecture
    config: str


KINDS = (
    Kind("Mask R-CNN", "roi_head.", MASK_RCNN, describe.MASK_RCNN, "mask_rcnn_gpvit_{}_1x"),
    Kind("RetinaNet", "bbox_head.", RETINANET, describe.RETINANET, "retinanet_gpvit_{}_1x"),
    Kind("UPerNet", "decode_head.psp_modules.", UPERNET, describe.UPERNET, "upernet_gpvit_{}"),
    Kind("SegFormer", "decode_head.", SEGFORMER, describe.SEGFORMER, "segformer_gpvit_{}"),
    Kind("ImageNet classifier", "head.fc.", CLASSIFIER, describe.CLASSIFIER, "classifier_gpvit_{}"),
)


def kind_of(state_dict: Mapping[str, Tensor]) -> Kind:
    """Return the kind of an official checkpoint.

    Raises:
        ValueError: it is none of :data:`KINDS`.
    """
    kind = _kind(state_dict)
    if kind is None:
        raise ValueError(f"not a published GPViT model; it contains {preview(list(state_dict))}")
    return kind


def _kind(state_dict: Mapping[str, Tensor]) -> Kind | None:
    for kind in KINDS:
        if any(key.startswith(kind.prefix) for key in state_dict):
            return kind
    return None


def converted(state_dict: Mapping[str, Tensor], kind: Kind) -> dict[str, Tensor]:
    """Return official tensors under this project's names.

    Raises:
        ValueError: a name that this kind of model does not have.
    """
    return _reorder_anchors(rename(state_dict, kind.names, what=kind.name))


def _without(tensors: Mapping[str, Tensor], prefixes: str | tuple[str, ...]) -> dict[str, Tensor]:
    return {key: tensor for key, tensor in tensors.items() if not key.startswith(prefixes)}


def from_published(state_dict: Mapping[str, Tensor], part: str = "backbone") -> dict[str, Tensor]:
    """Return an official model, or a part of it, under this project's names.

    Args:
        state_dict: of an official detector, segmentation model, classifier or backbone, whose names
            may begin with ``backbone.`` or not.
        part: "backbone", for :class:`gpvit.GPViT`; or "model", for the complete model of
            ``configs/published``.

    Raises:
        ValueError: there is no such part, or a name that a model of this kind does not have. The
            names of its other parts are known and left out.
    """
    if part not in ("backbone", "model"):
        raise ValueError(f'part must be "backbone" or "model", got {short_repr(part)}')
    kind = _kind(state_dict)
    if part == "model":
        if kind is None:
            raise ValueError('a backbone alone has no part "model"; use part="backbone"')
        return converted(state_dict, kind)
    if kind is not None and kind.architecture.is_detector:
        return backbone_of(converted(state_dict, kind))
    kept = _without(state_dict, HEADS if kind else ())
    prefix = "backbone." if any(key.startswith("backbone.") for key in kept) else ""
    names = _below(prefix, "", BACKBONE)
    if kind is None:  # the backbone of a detector may come with its adapter
        names |= _below(prefix, "adapter.", ADAPTER)
    weights = rename(kept, names, what=kind.name if kind else "GPViT backbone")
    return _without(weights, "adapter.")


def backbone_of(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights of the GPViT in a complete model, under this project's names."""
    prefix = backbone_prefix(weights)
    backbone = {}
    for key, tensor in weights.items():
        if key.startswith(prefix):
            backbone[key.removeprefix(prefix)] = tensor
    return backbone


def backbone_prefix(weights: Mapping[str, Tensor]) -> str:
    """Return what the names of the GPViT in a complete model begin with, such as "backbone."."""
    [position] = [key for key in weights if key.endswith(".pos_embed")]
    return position.removesuffix("pos_embed")


# Layers of official models, and their number of outputs for each class.
_OUTPUTS_PER_CLASS = {
    "head.fc.weight": 1,
    "decode_head.conv_seg.weight": 1,
    "roi_head.bbox_head.fc_reg.weight": 4,  # a box; fc_cls has one more class, the background
    "bbox_head.retina_cls.weight": 9,  # a score for each anchor
}


def classes_of(state_dict: Mapping[str, Tensor], meta: Mapping[str, Any]) -> list[str] | None:
    """Return the class names of an official model.

    A segmentation model with 150 classes has those of ADE20K, as Detectron2 names them, and a
    classifier with 1000 those of ImageNet, as torchvision names them. The names of others are those
    in the metadata of the file if their number fits, else for a detector those of COCO if theirs
    does, else None.
    """
    counts = set()
    for key, outputs in _OUTPUTS_PER_CLASS.items():
        if key in state_dict and state_dict[key].ndim:
            counts.add(len(state_dict[key]) // outputs)
    is_segmentation = "decode_head.conv_seg.weight" in state_dict
    if is_segmentation and counts == {len(ADE20K_CLASSES)}:
        return ADE20K_CLASSES
    is_classifier = "head.fc.weight" in state_dict
    if is_classifier and counts == {len(IMAGENET_CLASSES)}:
        return IMAGENET_CLASSES
    names: Any = meta.get("CLASSES")
    number_fits = isinstance(names, list | tuple) and counts == {len(names)}
    if number_fits and all(isinstance(name, str) for name in names):
        return list(names)
    is_detector = not is_segmentation and not is_classifier
    return COCO_CLASSES if counts == {len(COCO_CLASSES)} and is_detector else None


def to_published(weights: Mapping[str, Tensor], classes: Sequence[str] | None) -> dict[str, Any]:
    """Return a model's weights in the layout of the official files, for the official code.

    Raises:
        ValueError: there is no such official model, for example with a simple feature pyramid.
    """
    architecture = architecture_of(weights)
    matching = None
    for kind in KINDS:
        if kind.architecture is architecture:
            matching = kind
    has_adapter = "backbone.bottom_up.level_embed" in weights
    needs_adapter = architecture is not None and architecture.is_detector
    if matching is None or (needs_adapter and not has_adapter):
        raise ValueError(
            "only Mask R-CNN and RetinaNet with the adapter, the segmentation models with a "
            "SegFormer or UPerNet head, and the classifiers have a counterpart in the official code"
        )
    group_blocks = set()
    for key in weights:
        match = re.fullmatch(r".*\.blocks\.(\d+)\.group_token", key)
        if match:
            group_blocks.add(int(match[1]))
    if group_blocks != GROUP_BLOCKS or not size_name(weights):
        raise ValueError("its GPViT is none of the published sizes")
    pooling = "attention" if "neck.query" in weights else "mean"
    if architecture is describe.CLASSIFIER and pooling != POOLING_OF_SIZES[size_name(weights)]:
        raise ValueError(f"a published classifier of its size has no {pooling} pooling")
    state_dict = rename(_reorder_anchors(weights), matching.names, inverse=True)
    for key in list(state_dict):
        if key.endswith("running_var"):  # frozen batch norm has no step counter
            counter = key.replace("running_var", "num_batches_tracked")
            state_dict.setdefault(counter, torch.tensor(0))
    return {"meta": {"CLASSES": tuple(classes)} if classes else {}, "state_dict": state_dict}


class _Rule(NamedTuple):
    """A line of a table of names, in one direction.

    Attributes:
        pattern: matches the names to rename, with a group for each placeholder.
        offsets: of these placeholders.
        target: template of the new name.
    """

    pattern: re.Pattern[str]
    offsets: list[int]
    target: str


def rename(
    tensors: Mapping[str, Tensor], names: Names, *, inverse: bool = False, what: str = "GPViT"
) -> dict[str, Tensor]:
    """Return tensors under our names, or under the official ones.

    Args:
        tensors: with official names, or with ours if ``inverse``.
        names: a table of names.
        inverse: whether to rename from ours to the official names.
        what: name of the model for the error.

    Raises:
        ValueError: a name that no rule applies to, or two names that become the same.
    """
    rules = []
    for theirs, ours in names.items():
        source, target = (ours, theirs) if inverse else (theirs, ours)
        rules.append(_Rule(_pattern(source), _offsets(source), target))
    renamed: dict[str, Tensor] = {}
    unknown = []
    for name, tensor in tensors.items():
        new_name = _apply(rules, name)
        if new_name is None or new_name in renamed:
            unknown.append(name)
        else:
            renamed[new_name] = tensor
    if unknown:
        raise ValueError(f"a published {what} has no {preview(unknown)}")
    return renamed


def _apply(rules: Sequence[_Rule], name: str) -> str | None:
    """Return the new name by the first rule that applies; None if there is none."""
    for rule in rules:
        match = rule.pattern.fullmatch(name)
        if match:
            new_name = _fill(rule.target, match.groups(), rule.offsets)
            if new_name:
                return new_name
    return None


_PLACEHOLDER = re.compile(r"#([+-]\d)?|\*")  # group 1 is the offset of an index, such as "+2"


def _pattern(template: str) -> re.Pattern[str]:
    """Return the regular expression of a template, with a group for each placeholder."""
    pattern, end = "", 0
    for placeholder in _PLACEHOLDER.finditer(template):
        pattern += re.escape(template[end : placeholder.start()])
        # \w has no dot, so "*" is exactly one component.
        pattern += r"(\w+)" if placeholder[0] == "*" else r"(\d+)"
        end = placeholder.end()
    return re.compile(pattern + re.escape(template[end:]))


def _offsets(template: str) -> list[int]:
    """Return the offset of each placeholder of a template; 0 for "#" and "*"."""
    return [int(placeholder[1] or 0) for placeholder in _PLACEHOLDER.finditer(template)]


def _fill(template: str, values: Sequence[str], offsets: Sequence[int]) -> str | None:
    """Fill a template with the values of the placeholders of another one.

    Args:
        template: with as many placeholders as there are values.
        values: what the placeholders of the other template matched.
        offsets: of the placeholders of the other template.

    Returns:
        the name; None if an index would be negative.
    """
    parts = []
    for value, source_offset, target_offset in zip(values, offsets, _offsets(template)):
        if value.isdecimal():
            # If "#-2" matched 1, the plain number is 1 + 2, and "#+1" becomes 3 + 1.
            index = int(value) - source_offset + target_offset
            if index < 0:
                return None
            value = str(index)
        parts.append(value)
    remaining = iter(parts)
    return _PLACEHOLDER.sub(lambda _: next(remaining), template)


def _reorder_anchors(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Exchange the two orders of RetinaNet's nine anchors in the outputs of its head.

    The official code has the aspect ratio as the outer and the scale as the inner index,
    Detectron2 the reverse. As there are three of each, one transposition converts either way.
    """
    reordered = dict(weights)
    for name, tensor in weights.items():
        is_output = name.startswith(("head.cls_score.", "head.bbox_pred."))
        # A tensor of any other shape is left to the comparison of shapes.
        if is_output and tensor.ndim and len(tensor) % 9 == 0:
            # (9 * K, ...) -> (3, 3, K, ...) -> (9 * K, ...), with K classes or box coordinates
            anchors = tensor.unflatten(0, (3, 3, -1))
            reordered[name] = anchors.transpose(0, 1).flatten(0, 2)
    return reordered
