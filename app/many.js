    // --- many.js ---
    // Many images: upload, progress with the time left, and the table's thumbnails, order and filter.
    const TABLES = /\.(csv|tsv|tab|txt|xlsx?|ods)$/i;  // of labels, as in app/score_table.py
    const counted = (count) => `${count} file${count === 1 ? " was" : "s were"}`;
    window.dermrw.many = {
        files: [], paths: [], calls: 0, began: 0, order: "", down: false, opened: null,
        tables: 0,  // number of the table on the page: what was sent for a cleared one is dropped
        sending: 0,  // uploads that have not ended
        resent: false,  // whether the files were sent again, since the server had lost their results
        unsent: [], reason: "",  // files whose upload failed, and why
        requests: new Set(),  // running uploads
        refused: [],  // sentences on uploads that the server refused
        filters: {},  // the selected values, by the id of their field

        // Adds files to the table. Several uploads may overlap; the table is drawn when the last one has ended.
        async add(added) {
            const table = this.tables, files = [...this.unsent, ...added];
            [this.unsent, this.refused] = [[], []];
            const room = MOST_FILES - this.files.length;  // the server takes no more in one call
            if (files.length > room) this.refused.push(`${counted(files.splice(room).length)} not sent: the table takes at most ${MOST_FILES}.`);
            if (!files.length) { this.status(""); return; }
            this.status("Sending …");
            find("#many-clear").disabled = false;
            this.sending += 1;
            try {
                const paths = await upload(files, (share) => {
                    if (table === this.tables && share < 1) this.status(`Sending … ${Math.round(100 * share)} %`);
                }, this.requests);
                if (table !== this.tables) return;
                this.files.push(...files);
                this.paths.push(...paths);
            } catch (error) {
                if (table !== this.tables) return;
                if (error.final) this.refused.push(`${counted(files.length)} not sent. ${error.message}`);
                else [this.unsent, this.reason] = [[...this.unsent, ...files], error.message];
                this.status("");
            }
            this.sending -= 1;
            if (!this.sending) this.ask();
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
            this.tables += 1;
            this.requests.forEach((request) => request.abort());
            [this.files, this.paths, this.unsent, this.refused, this.opened, this.sending] = [[], [], [], [], null, 0];
            this.filters = {};
            find("#table").innerHTML = "";
            find("#many-clear").disabled = true;
            this.status("");
            find("#many-go").click();  // without files: the server stops what it is doing for this page
            find("#many-input").focus({ preventScroll: true });
        },

        call() {
            return [this.paths.map(fileData), JSON.stringify({ call: this.calls, prevalence: prevalence.text, pictures: [] })];
        },

        failed() { this.status("The server did not answer.", () => this.ask()); },

        status(text, retry) {
            const { unsent, reason } = this, failed = unsent.length ? `${counted(unsent.length)} not sent. ${reason}` : "";
            const line = [...this.refused, failed, text].filter(Boolean).join(" ");
            showStatus(find("#many-status"), line, failed ? () => this.add([]) : retry);
        },

        answered(raw) {
            const content = carried(raw), section = content && find("[data-call]", content);
            if (!section || (Number(section.dataset.call) !== this.calls && section.dataset.call !== "0")) return;
            if (section.dataset.code === "gone" && !this.resent) {  // the server keeps a result for ten minutes
                this.resent = true;
                this.calls += 1;  // what still arrives of this call is not shown
                const files = this.files;
                [this.files, this.paths] = [[], []];
                this.add(files);
                return;
            }
            this.resent = false;
            const row = document.activeElement?.dataset?.open;
            find("#table").innerHTML = section.innerHTML;
            Object.entries(this.filters).forEach(([id, value]) => { if (find(`#${id}`)) find(`#${id}`).value = value; });
            if (row !== undefined) find(`#table [data-open="${row}"]`)?.focus({ preventScroll: true });
            const progress = find("#table progress");
            if (progress && progress.value) {
                const left = (performance.now() - this.began) / 1000 * (progress.max - progress.value) / progress.value;
                this.status(left > 90 ? `About ${Math.round(left / 60)} minutes left` : `About ${Math.ceil(left)} seconds left`);
            } else if (!this.sending) this.status("");
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
            const sort = find("#sort-rows");  // not in a table that still grows
            if (sort) sort.value = ["rank", "name"].includes(this.order) && !this.down ? this.order : "";
            const count = find("#filter-count");
            if (count) count.textContent = shown === rows.length ? "" : `${shown} of ${rows.length} shown`;
            all("#table th[aria-sort]").forEach((head) => {
                const own = find("button", head).dataset.sort === this.order;
                head.setAttribute("aria-sort", !own ? "none" : this.down ? "descending" : "ascending");
            });
        },

        // Opens the answer of one image in the first tab.
        open(place) {
            this.opened = place;
            find("[role=tablist] [role=tab]").click();
            window.dermrw.one.start([this.files.filter(({ name }) => !TABLES.test(name))[place]]);
        },

        // Returns to the row that was opened.
        reopen() {
            const row = find(`#table [data-open="${this.opened}"]`);
            this.opened = null;
            if (!row || row.closest("tr").hidden) return;
            row.focus({ preventScroll: true });
            row.scrollIntoView({ block: "center" });
        },

        connect() {
            const tab = all("[role=tablist] [role=tab]")[1];
            tab.addEventListener("click", () => { if (this.opened !== null) setTimeout(() => this.reopen(), 60); });
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
                if (target.id === "sort-rows") {
                    [this.order, this.down] = [target.value || "place", false];
                    this.arrange();
                }
                if (!["filter-decision", "filter-class"].includes(target.id)) return;
                this.filters[target.id] = target.value;
                this.arrange();
            });
        },
    };
