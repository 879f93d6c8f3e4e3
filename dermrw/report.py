def write_html(run, suffix, report, scored):
    pass
