    // --- recent.js ---
    // The last answers, in this tab's memory only.
    const MOST_RECENT = 12;
    const recent = {
        entries: [],

        // Keeps the lesion that is shown, before another one replaces it.
        keep() {
            const pictures = viewer.pictures, html = find("#result").innerHTML;
            if (!pictures.length || !find("#result [data-answer]")) return;
            const { data, reference, asked } = window.dermrw.one;
            this.entries = this.entries.filter((entry) => entry.pictures !== pictures);
            this.entries.unshift({ pictures, html, data, reference, asked });
            this.entries.splice(MOST_RECENT).forEach((old) => old.pictures.forEach((picture) => picture.forget()));
            this.draw();
        },

        draw() {
            const list = find("#recent ul");
            find("#recent").hidden = !this.entries.length;
            list.innerHTML = "";
            this.entries.forEach((entry) => {
                const item = document.createElement("li"), button = document.createElement("button"), label = document.createElement("span");
                button.type = "button";
                const [first] = entry.pictures;
                if (first.url) {
                    const image = new Image();
                    image.src = first.url;
                    image.alt = "";
                    button.append(image);
                }
                label.className = entry.data.decision;
                label.textContent = `${entry.data.mark} ${[entry.data.label, entry.data.short].filter(Boolean).join(": ")}`;
                button.title = entry.reference || first.name;
                button.append(label);
                button.onclick = () => this.show(entry);
                item.append(button);
                list.append(item);
            });
        },

        // Shows an earlier answer again, with its prevalence.
        show(entry) {
            this.keep();
            this.entries = this.entries.filter((other) => other !== entry);
            this.draw();
            const one = window.dermrw.one;
            const before = prevalence.text;
            one.leave();
            one.calls += 1;
            one.reference = entry.reference;
            prevalence.restore(entry.asked);
            if (prevalence.text !== before) window.dermrw.many.ask();  // both tabs have the same prevalence
            viewer.show(entry.pictures);
            one.show(entry.html, { pictures: entry.pictures, focus: true, asked: entry.asked });
        },
    };
