"""The former path of `dermrw.datasets.split`, kept so that old commands and imports work."""

from dermrw.datasets.split import RULE as RULE
from dermrw.datasets.split import SPLIT_COLUMNS as SPLIT_COLUMNS
from dermrw.datasets.split import curated_list as curated_list
from dermrw.datasets.split import main
from dermrw.datasets.split import meta_by_rule as meta_by_rule
from dermrw.datasets.split import meta_set as meta_set
from dermrw.datasets.split import split_lesions as split_lesions

if __name__ == "__main__":
    main()
