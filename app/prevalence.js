    // --- prevalence.js ---
    // The selected prevalence. Both tabs show the same one.
    const prevalence = {
        key: "equal", values: [], codes: [], presets: {},

        // What the server is asked for: the key of a preset, or the share of each class.
        get text() {
            const sum = this.values.reduce((total, value) => total + value, 0);
            return this.key !== "own" ? this.key : this.codes.map((code, c) => `${code}=${(this.values[c] / sum).toFixed(9)}`).join(",");
        },

        // What is selected, to be restored by `restore`.
        get state() { return { key: this.key, values: this.values }; },

        restore({ key, values }) {
            [this.key, this.values] = [key, values];
            this.draw();
        },

        choose(key) {
            this.key = key;
            if (key !== "own") this.values = this.presets[key].map((share) => 100 * share);
            this.draw();
        },

        // Sets one class's percentage; the others keep their proportions and share the rest.
        set(index, value) {
            const others = this.values.reduce((sum, other, c) => sum + (c === index ? 0 : other), 0), count = this.values.length - 1;
            this.values = this.values.map((other, c) => c === index ? value
                : others > 0 ? other * (100 - value) / others : (100 - value) / count);
            this.key = "own";
            this.draw();
        },

        draw() {
            all(".prevalence").forEach((box) => {
                const select = find("select", box);
                box.dataset.drawn = "true";
                select.value = this.key;
                find(".source", box).textContent = select.selectedOptions[0].dataset.source;
                all("[data-share]", box).forEach((slider, c) => {
                    const text = `${this.values[c].toFixed(1)} %`;
                    if (slider !== document.activeElement) slider.value = this.values[c];
                    slider.setAttribute("aria-valuetext", text);
                    slider.nextElementSibling.textContent = text;
                });
            });
        },

        // Connects the fields; `changed` is called when the user has chosen a prevalence.
        connect(changed) {
            const box = find(".prevalence");
            this.presets = JSON.parse(box.dataset.shares);
            this.codes = JSON.parse(box.dataset.codes);
            this.choose(this.key);
            new MutationObserver(() => {  // Gradio builds the second tab when it is first opened
                if (find(".prevalence:not([data-drawn])")) this.draw();
            }).observe(document.body, { childList: true, subtree: true });
            document.addEventListener("input", ({ target }) => {
                if (target.dataset?.share) this.set(Number(target.dataset.share), Number(target.value));
            });
            document.addEventListener("change", ({ target }) => {
                if (target.closest?.(".prevalence") && target.matches("select")) {
                    this.choose(target.value);
                    if (this.key === "own") find("details", target.closest(".prevalence")).open = true;
                }
                else if (!target.dataset?.share) return;
                changed();
            });
        },
    };
