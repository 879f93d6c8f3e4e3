    // --- many.js ---
    // Many images: upload, progress with the time left, and the table's thumbnails, order and filter.
    const TABLES = /\.(csv|tsv|tab|txt|xlsx?|ods)$/i;  // of labels, as in app/score_table.py
    window.dermrw.many = {
        files: [], paths: [], calls: 0, began: 0, order: "", down: false,

        async add(files) {
            const call = this.calls += 1;
            this.status("Sending …");
            find("#many-clear").disabled = false;
            try {
                const paths = await upload(files, (share) => {
                    if (call === this.calls && share < 1) this.status(`Sending … ${Math.round(100 * share)} %`);
                });
                if (call !== this.calls) return;
                this.files.push(...files);
                this.paths.push(...paths);
            } catch (error) {
                this.status(error.message);
                return;
            }
            this.ask();
        },

        ask() {
            if (!this.paths.length) return;
            this.calls += 1;
            this.began = performance.now();
            this.status("Classifying …");
            find("#many-go").click();
        },

        clear() {
            this.calls += 1;
            [this.files, this.paths] = [[], []];
            find("#table").innerHTML = "";
            find("#many-clear").disabled = true;
            this.status("");
            find("#many-input").focus({ preventScroll: true });
        },

        call() {
            return [this.paths.map(fileData), JSON.stringify({ call: this.calls, prevalence: prevalence.text, pictures: [] })];
        },

        failed() { this.status("The server did not answer: try again."); },

        status(text) { find("#many-status").textContent = text; },

        answered(raw) {
            const content = carried(raw), section = content && find("[data-call]", content);
            if (!section || (Number(section.dataset.call) !== this.calls && section.dataset.call !== "0")) return;
            find("#table").innerHTML = section.innerHTML;
            const progress = find("#table progress");
            if (progress && progress.value) {
                const left = (performance.now() - this.began) / 1000 * (progress.max - progress.value) / progress.value;
                this.status(left > 90 ? `About ${Math.round(left / 60)} minutes left` : `About ${Math.ceil(left)} seconds left`);
            } else this.status("");
            this.arrange();
        },

        // Orders and filters the rows as the user chose.
        arrange() {
            const body = find("#table tbody[data-rows]");
            if (!body) return;
            const key = (row) => row.dataset[this.order] ?? "", rows = all("tr", body);
            const number = ["place", "rank", "share"].includes(this.order);
            if (this.order) {
                rows.sort((a, b) => (this.down ? -1 : 1) * (number ? key(a) - key(b) : key(a).localeCompare(key(b)))
                    || a.dataset.place - b.dataset.place);
                body.append(...rows);
            }
            const decision = find("#filter-decision")?.value ?? "", category = find("#filter-class")?.value ?? "";
            let shown = 0;
            rows.forEach((row) => {
                row.hidden = (decision && row.dataset.decision !== decision)
                    || (category && !JSON.parse(row.dataset.set).includes(category));
                shown += !row.hidden;
            });
            const count = find("#filter-count");
            if (count) count.textContent = shown === rows.length ? "" : `${shown} of ${rows.length} shown`;
            all("#table th[aria-sort]").forEach((head) => {
                const own = find("button", head).dataset.sort === this.order;
                head.setAttribute("aria-sort", !own ? "none" : this.down ? "descending" : "ascending");
            });
        },

        // Opens the answer of one image in the first tab.
        open(place) {
            find("[role=tablist] [role=tab]").click();
            window.dermrw.one.start([this.files.filter(({ name }) => !TABLES.test(name))[place]]);
        },

        connect() {
            document.addEventListener("click", ({ target }) => {
                const sort = target.closest("[data-sort]"), opened = target.closest("[data-open]");
                if (sort) {
                    this.down = this.order === sort.dataset.sort && !this.down;
                    this.order = sort.dataset.sort;
                    this.arrange();
                } else if (opened) this.open(Number(opened.dataset.open));
                else if (target.id === "many-clear") this.clear();
            });
            document.addEventListener("change", ({ target }) => {
                if (["filter-decision", "filter-class"].includes(target.id)) this.arrange();
            });
        },
    };
