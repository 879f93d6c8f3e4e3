"""The former path of `dermrw.decisions.prevalence` and `lesion_rule`, kept so that old imports work."""

from dermrw.decisions.lesion_rule import LESION_RULES as LESION_RULES
from dermrw.decisions.lesion_rule import combine as combine
from dermrw.decisions.prevalence import at_prevalence as at_prevalence
from dermrw.decisions.prevalence import parse_prevalence as parse_prevalence
