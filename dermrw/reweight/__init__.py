"""The meta step of learning to reweight examples (Ren et al. 2018), exact and approximate. It needs only torch.

`reweighted_losses` is the whole step. The other functions are its parts, for objectives that combine them differently.
"""

from dermrw.reweight.meta_step import losses_along as losses_along
from dermrw.reweight.meta_step import meta_gradient as meta_gradient
from dermrw.reweight.meta_step import normalize as normalize
from dermrw.reweight.meta_step import outputs_along as outputs_along
from dermrw.reweight.meta_step import reweighted_losses as reweighted_losses
