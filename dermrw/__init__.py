"""dermrw: skin-lesion classification on HAM10000 by learning to reweight examples.

Importing this package imports nothing else; take what you need from its modules, for instance
`from dermrw.reweight import reweighted_losses`.
"""

__version__ = "0.1.0"
