"""Every key of a run with its default: LMSeg, CLIP ResNet-50, as in the paper.

A config is a short program: import this module, change what differs, return the ConfigDict.
Sections in comments are those of the paper (LMSeg, ICLR 2023).
"""

from ml_collections import ConfigDict

JOINT = {"lmseg": "text", "multi_head": "multi_head", "manual_taxonomy": "manual_taxonomy"}  # heads


def get_config():
    config = ConfigDict()
    config.mode = "train"  # train | evaluate | words (worlds_words.py) | pretrain (clip_worlds.py)
    config.seed = 0

    config.data = ConfigDict()
    config.data.train = ()  # cards (shipped name or path) that are mixed in training
    config.data.evaluate = ()  # cards scored in evaluation; empty = those of training
    config.data.root = ""  # folder that holds every dataset's tree; worlds need none
    config.data.train_split = "train"
    config.data.evaluate_split = "val"
    config.data.evaluate_limit = 0  # first n images of each split in evaluation; 0 = all
    # own: A_i of each card (DAA, Sec. 3.5) | fixed: one for all | that of one of data.train for all
    config.data.augmentation = "own"
    config.data.names = "first"  # what the text encoder reads: first | whole: "name, synonym, ..."
    config.data.max_targets = 100  # segments a crop may have, at most `model.queries`
    config.data.workers = 0  # loader processes; 0 = threads only
    config.data.threads = 2  # loader threads of one process
    config.data.on_error = "stop"  # at a bad training file: stop | skip: take another image

    config.batching = ConfigDict()
    config.batching.policy = "stratified"  # one_dataset (release) | padded; docs/fidelity.md
    config.batching.batch = 16  # images of one update, all datasets together (Sec. 4.1)
    config.batching.multiple = 8  # images of a bucket are a multiple; devices divide it
    config.batching.micro = 0  # images of one gradient call; 0 = a whole bucket
    config.batching.weights = ()  # share of each training card; empty = uniform (Sec. 3.5)

    config.model = ConfigDict()
    config.model.backbone = "clip_resnet"  # or resnet: ImageNet form, 7x7 stem and max-pool
    config.model.pixels = "clip"  # mean and std of the images: clip | imagenet, as the weights'
    config.model.head = "text"  # or the baselines linear | multi_head | manual_taxonomy
    config.model.queries = 100  # N, Sec. 4.1
    config.model.dtype = "float32"  # of the network's arithmetic | bfloat16: docs/scale.md
    config.model.remat = "none"  # blocks: backbone blocks and decoder layers run twice, less memory
    config.model.width = 256  # D, of decoder, adapter and mask embeddings
    config.model.temperature = 0.07  # tau, Eq. 1
    config.model.manual = ConfigDict()
    config.model.manual.restrict = True  # segment by the asked dataset's names | False: the union
    config.model.temperature_learned = False  # True (release): tau starts there, within [0.01, 1]
    config.model.similarity = "cosine"  # of query and name, Eq. 1 | raw: neither is normalised
    config.model.query_mlp = False  # True (release): three layers before a query meets the names
    config.model.adapter_norm = False  # True (release): LayerNorm before the adapter, Sec. 3.2
    config.model.resnet = ConfigDict()
    config.model.resnet.depths = (3, 4, 6, 3)  # blocks of res2..res5
    config.model.resnet.width = 64  # channels after the stem; res2 has 4x, res5 32x
    config.model.resnet.norm = "frozen"  # frozen: constants, needs weights | group: from scratch
    config.model.resnet.affine = False  # train scale and bias of the frozen norms
    config.model.pixel_decoder = ConfigDict()
    config.model.pixel_decoder.name = "fpn"
    config.model.pixel_decoder.width = 256
    config.model.pixel_decoder.groups = 32  # of each GroupNorm
    config.model.pixel_decoder.mask_width = 0  # channels of the mask features; 0 = width
    config.model.decoder = ConfigDict()
    config.model.decoder.layers = 6
    config.model.decoder.heads = 8
    config.model.decoder.feedforward = 2048
    config.model.decoder.dropout = 0.1
    config.model.decoder.order = "visual-text"  # CGD, Sec. 3.4 | text-visual | visual (none)
    config.model.decoder.queries = "zeros"  # with a position | learned: no position (release)
    config.model.decoder.memory = "res5"  # or res3 | res4 | pixel8 | pixel16 (FPN levels)
    config.model.decoder.padding = "hidden"  # from image attention | seen (MaskFormer)
    config.model.decoder.project = True  # 1x1 projection of the memory | False: it has D channels
    config.model.decoder.norm_between = False  # True: a layer gets the normed output of the last
    config.model.text = ConfigDict()
    config.model.text.width = 512  # CLIP RN50's text tower
    config.model.text.layers = 12
    config.model.text.heads = 8
    config.model.text.embedding = 1024  # width of the joint image-text space
    config.model.text.prompt = 8  # learnable context vectors, Sec. 3.2
    config.model.text.template = "{name}"  # behind the vectors; release: "a photo of {name}"
    config.model.text.prompt_std = 0.02  # of their initial normal distribution (CoOp)

    config.pretrained = ConfigDict()
    config.pretrained.image = "openai/rn50"  # "" = random | "worlds-clip" | a name or path
    config.pretrained.text = "openai/rn50"  # the text tower is always frozen
    # fine-tuning: a whole model to begin from in place of `image`, whatever lmseg_jax.load takes
    config.pretrained.model = ""  # docs/finetuning.md

    config.loss = ConfigDict()
    config.loss.classification = 1.0  # weight of the contrastive loss, Eq. 2
    config.loss.focal = 20.0  # Eq. 3
    config.loss.dice = 1.0  # Eq. 3
    config.loss.no_object = 0.1  # class weight of "background" for unmatched queries, Sec. 3.3
    config.loss.resolution = "full"  # full: masks upsampled to the crop | quarter: stride 4
    config.loss.unlabelled = "excluded"  # void and padding pixels: excluded | negative (MaskFormer)

    config.matcher = ConfigDict()
    config.matcher.where = "host"  # host: SciPy in a callback | device: optax.assignment
    config.matcher.classification = 1.0  # weights of the matching cost, Sec. 3.3
    config.matcher.focal = 20.0
    config.matcher.dice = 1.0

    config.optimizer = ConfigDict()
    config.optimizer.steps = 160_000
    config.optimizer.rate = 1e-4  # AdamW, Sec. 4.1
    config.optimizer.decay = 1e-4
    config.optimizer.backbone_rate = 0.1  # times `rate`
    config.optimizer.schedule = "poly"  # poly: (1 - t/T)^power | cosine: to 1 % of the rate
    config.optimizer.power = 0.9
    config.optimizer.warmup = 0  # updates of linear warm-up
    config.optimizer.clip = 0.01  # global gradient norm
    config.optimizer.average = 0.0  # decay of the evaluated moving average; 0 = off

    config.mesh = ConfigDict()
    config.mesh.data = -1  # devices of the data axis; -1 = all that fsdp leaves
    config.mesh.fsdp = 1  # devices over which parameters are split
    config.mesh.cpu_devices = 0  # simulated where there is only a CPU; 0 = one for two cores

    config.evaluation = ConfigDict()
    config.evaluation.every = 5000  # updates between evaluations; the last is evaluated
    config.evaluation.batch = 1  # images a device segments at once, where their sizes agree
    config.evaluation.average = 1  # `mean_of_last` is the mean of this many evaluations
    config.evaluation.cross = False  # fill the worlds x taxonomies table at the end
    config.evaluation.scenes = ()  # worlds whose scenes are its rows; () = those evaluated
    config.evaluation.baselines = False  # trivial baselines beside the model
    config.evaluation.flip = False  # average the label scores with those of the mirrored image
    config.evaluation.scale = 1.0  # times the test size of every card
    config.evaluation.scales = ()  # and over these factors of the test size; () = only 1
    config.evaluation.pictures = 4  # images a dataset in panels.png; 0 = none

    config.checkpoint = ConfigDict()
    config.checkpoint.every = 5000  # updates between checkpoints
    config.checkpoint.keep = 2

    config.log = ConfigDict()
    config.log.every = 20  # updates between rows of metrics.jsonl
    return config


def use_method(config, method, *, cards):
    """Makes a config of LMSeg that of one of the compared methods; all else stays as it is.

    Args:
      config: changed in place; its updates are those of a model of all datasets.
      method: lmseg | multi_head | manual_taxonomy: one model of all cards; or one of the cards:
        MaskFormer on it alone, for its share of the updates.
      cards: of all datasets.
    """
    config.data.train = cards if method in JOINT else (method,)
    for key in ("steps", "warmup"):
        config.optimizer[key] = config.optimizer[key] * len(config.data.train) // len(cards)
    config.model.head = JOINT.get(method, "linear")
    if config.model.head != "text":
        config.model.decoder.order = "visual"
        config.pretrained.text = ""
