    // --- lesion.js ---
    // One lesion: its pictures, the call of the server, and the answer. Gradio calls `call` and `failed`.
    window.dermrw.one = {
        calls: 0, waiting: null, retried: false,
        lesions: 0,  // number of the lesion on the page: what was begun for an earlier one is dropped
        requests: new Set(),  // running uploads
        asked: null,  // the prevalence of the answer that is shown

        // A new lesion with these files; without files, an empty page.
        async start(files) {
            recent.keep();
            find("#result").innerHTML = "";
            this.leave();
            this.calls += 1;  // an answer that still arrives is not shown
            this.reference = "";
            viewer.show([]);
            if (files.length) await this.add(files);
            else {
                this.status("The answer appears here.");
                find("#one-input").focus({ preventScroll: true });
            }
        },

        // Drops what is being read or sent for the lesion on the page, which another one replaces.
        leave() {
            this.lesions += 1;
            this.requests.forEach((request) => request.abort());
        },

        // Further pictures of the same lesion.
        async add(files) {
            const pictures = files.map((file) => new Picture(file)), lesion = this.lesions;
            this.status("Reading …");
            await Promise.all(pictures.map((picture) => picture.read()));
            if (lesion !== this.lesions) {
                pictures.forEach((picture) => picture.forget());
                return;
            }
            find("#result").innerHTML = "";
            this.calls += 1;
            this.reference = "";
            viewer.show([...viewer.pictures, ...pictures], pictures[0]);
            await this.ask({ focus: true });
        },

        remove(picture) {
            const rest = viewer.pictures.filter((other) => other !== picture);
            picture.forget();
            this.reference = "";
            viewer.show(rest);
            this.ask({ focus: true });
        },

        // Uploads what the server does not have, then calls it.
        async ask({ focus = false } = {}) {
            const pictures = viewer.pictures, call = this.calls += 1;
            if (!pictures.length) return;
            if (focus) find("#result").innerHTML = "";  // an older answer must not stand next to another picture
            this.status("Classifying …");
            const absent = pictures.filter((picture) => !picture.path);
            try {
                if (absent.length) {
                    const paths = await upload(absent.map(({ file }) => file), (share) => {
                        if (share < 1 && call === this.calls) this.status(`Sending … ${Math.round(100 * share)} %`);
                    }, this.requests);
                    absent.forEach((picture, i) => { picture.path = paths[i]; });
                }
            } catch (error) {
                if (call === this.calls) this.failed(error.message);
                return;
            }
            if (call !== this.calls) return;
            this.waiting = { call, focus, pictures, asked: prevalence.state };
            find("#one-go").click();
        },

        // The arguments of the server's function: files, and the text that app/ask.py reads.
        call() {
            const { call, pictures } = this.waiting;
            const changes = pictures.map(({ turn, crop, preview }) => ({ turn, crop, preview }));
            return [pictures.map(({ path }) => fileData(path)), JSON.stringify({ call, prevalence: prevalence.text, pictures: changes })];
        },

        failed(message = "The server did not answer.") { this.status(message, () => this.ask({ focus: true })); },

        // Shows what the server returned, unless it is an answer to an earlier call.
        answered(raw) {
            const content = carried(raw), section = content && find("[data-call]", content), waiting = this.waiting;
            if (!section || !waiting || Number(section.dataset.call) !== waiting.call || waiting.call !== this.calls) return;
            if (find("[data-code=gone]", content) && !this.retried) {  // the server keeps a result for ten minutes
                this.retried = true;
                waiting.pictures.forEach((picture) => { picture.path = ""; });
                this.ask(waiting);
                return;
            }
            this.retried = false;
            this.waiting = null;
            this.show(all(".answer", content).map((part) => part.outerHTML).join(""), waiting);
        },

        // Shows an answer, of the server or of this tab's memory.
        show(html, { pictures, focus, asked }) {
            this.asked = asked;
            const result = find("#result"), open = all("details[open]", result).map(({ className }) => className);
            result.innerHTML = html;
            open.forEach((name) => { const details = find(`details.${name}`, result); if (details) details.open = true; });
            this.status("");
            const section = find("[data-answer]", result), field = find(".remark input", result);
            if (field) field.value = this.reference;
            if (section) {
                const data = JSON.parse(section.dataset.answer);
                const again = data.pictures.map((one) => pictures[one.place].take(one)).some(Boolean);
                viewer.offer(data.classes);
                this.data = data;
                if (again) { this.ask({ focus }); return; }
            }
            viewer.show(viewer.pictures, viewer.shown);
            if (focus) this.bringUp();
        },

        // Moves the focus to the answer, and the page to picture and answer if one was scrolled out of sight.
        bringUp() {
            const heading = find("#result h2");
            heading?.focus({ preventScroll: true });
            const boxes = [heading, find("#frame")].filter(Boolean).map((part) => part.getBoundingClientRect());
            const top = Math.min(...boxes.map((box) => box.top)), below = boxes[0].bottom + 60 - innerHeight;
            if (top < 0) scrollBy({ top: top - 8 });
            else if (heading && below > 0) scrollBy({ top: Math.min(below, boxes[0].top - 8) });  // a low screen
        },

        status(text, retry) { showStatus(find("#status"), text, retry); },

        // Draws the pictures of the printout: each as it is, and with the heat map.
        print() {
            const views = find("#result .views");
            if (!views) return;
            views.innerHTML = "";
            viewer.pictures.forEach((picture) => {
                if (!picture.data || !picture.url) return;
                const source = picture === viewer.shown ? find("#picture") : find(`#thumbs img[src="${picture.url}"]`);
                const figure = document.createElement("figure"), caption = document.createElement("figcaption");
                const { data } = picture, [width, height] = picture.size, scale = Math.min(1, 800 / Math.max(width, height));
                [false, true].slice(0, data.map ? 2 : 1).forEach((heated) => {
                    const canvas = document.createElement("canvas"), context = canvas.getContext("2d");
                    [canvas.width, canvas.height] = [Math.round(width * scale), Math.round(height * scale)];
                    context.drawImage(source, 0, 0, canvas.width, canvas.height);
                    const [l, t, r, b] = data.seen.map((edge) => edge * scale);
                    if (heated) {
                        const heat = document.createElement("canvas");
                        drawHeat(heat, data.map, Number(find("#heat-class").value), (r - l) / (b - t));
                        context.globalAlpha = 0.65;
                        context.drawImage(heat, l, t, r - l, b - t);
                        context.globalAlpha = 1;
                    }
                    context.lineWidth = 4; context.strokeStyle = "#000"; context.strokeRect(l, t, r - l, b - t);
                    context.lineWidth = 2; context.strokeStyle = "#fff"; context.strokeRect(l, t, r - l, b - t);
                    const image = new Image();
                    image.src = canvas.toDataURL("image/jpeg", 0.9);
                    image.alt = "";
                    figure.append(image);
                });
                // a long name is cut in print, the answer is not
                [`${picture.name}:`, [data.label, data.text].filter(Boolean).join(", ")].forEach((text) => {
                    const part = document.createElement("span");
                    part.dir = "auto";
                    part.textContent = text;
                    caption.append(part, " ");
                });
                figure.append(caption);
                views.append(figure);
            });
            if (viewer.pictures.some(({ data }) => data?.map)) {
                const line = document.createElement("p");
                line.textContent = `Frame: seen by the model. Heat map: evidence for ${find("#heat-class").selectedOptions[0].text}, relative to the maximum in each image.`;
                views.append(line);
            }
        },
    };
