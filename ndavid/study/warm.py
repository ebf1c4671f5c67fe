"""What recipes and evaluators import; imported once by the process that steps are forked from."""

import ndavid.evaluation.finetune
import ndavid.evaluation.image_linear
import ndavid.evaluation.linear  # noqa: F401
