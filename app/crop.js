    // --- crop.js ---
    // The user's crop and rotation of the shown picture. The server applies the numbers to the original pixels.
    const LEAST_CROP = 32;  // pixels of a side
    const cropping = {
        active: false, box: [0, 0, 0, 0],
        picture: null, before: null,  // the picture that is cropped, and what it was before
        turning: null,  // the rotation that is being computed

        start() {
            const picture = viewer.shown;
            if (!picture?.url) return;
            this.active = true;
            this.picture = picture;
            this.calls = window.dermrw.one.calls;
            this.before = { turn: picture.turn, crop: picture.crop, data: picture.data, path: picture.path };
            viewer.reset();
            this.box = [...picture.crop ?? picture.data?.cut ?? [0, 0, ...picture.size]];
            this.draw();
        },

        stop() {
            this.active = false;
            this.draw();
        },

        // Ends without a change. The picture may no longer be the one that is shown.
        async cancel() {
            const { picture, before } = this, asked = this.calls !== window.dermrw.one.calls;
            this.stop();
            await this.turning;
            if (picture.turn !== before.turn) await picture.rotate((before.turn - picture.turn + 4) % 4).catch(() => {});
            Object.assign(picture, before);
            if (!viewer.pictures.includes(picture)) return;
            viewer.draw();
            viewer.drawThumbs();
            if (picture === viewer.shown) find("#crop").focus({ preventScroll: true });
            if (asked) window.dermrw.one.ask();  // the answer is for the turned picture
        },

        draw() {
            const frame = find("#stage .cropping"), picture = viewer.shown;
            frame.hidden = !this.active;
            find("#crop").hidden = this.active;
            find("#crop-tool .crop-fields").hidden = !this.active;
            find("#heat-tool").classList.toggle("off", this.active);
            if (this.active) {
                const [width, height] = picture.size, [l, t, r, b] = this.box;
                Object.assign(frame.style, {
                    left: `${100 * l / width}%`, top: `${100 * t / height}%`,
                    width: `${100 * (r - l) / width}%`, height: `${100 * (b - t) / height}%`,
                });
                all("[data-edge]").forEach((field, i) => {
                    field.max = i % 2 ? height : width;
                    if (field !== document.activeElement) field.value = this.box[i];
                });
            }
            if (viewer.shown) { viewer.drawMarks(); viewer.drawHeat(); }
        },

        // Sets the edges, within the picture and at least LEAST_CROP apart; `held`: the edges that the user moves.
        set(edges, held = [0, 1, 2, 3]) {
            const [width, height] = viewer.shown.size, box = edges.map(Math.round);
            [[0, 2, width], [1, 3, height]].forEach(([low, high, side]) => {
                const least = Math.min(LEAST_CROP, side);
                if (held.includes(low) && held.includes(high)) {  // moved as a whole
                    const length = Math.min(side, Math.max(least, box[high] - box[low]));
                    box[low] = Math.min(side - length, Math.max(0, box[low]));
                    box[high] = box[low] + length;
                } else {
                    box[low] = Math.max(0, held.includes(low) ? Math.min(box[low], box[high] - least) : box[low]);
                    box[high] = Math.min(side, held.includes(high) ? Math.max(box[high], box[low] + least) : box[high]);
                }
            });
            this.box = box;
            this.draw();
        },

        connect() {
            const frame = find("#stage .cropping");
            let drag = null;
            find("#crop").onclick = () => { this.start(); frame.focus({ preventScroll: true }); };
            find("#crop-cancel").onclick = () => this.cancel();
            find("#crop-apply").onclick = () => this.apply(this.box);
            find("#crop-automatic").onclick = () => this.apply(null);
            all("[data-turn]").forEach((button) => {
                button.onclick = async () => {
                    const { picture } = this;
                    const enable = (yes) => all("#crop-tool button").forEach((other) => { other.disabled = !yes; });
                    enable(false);
                    this.turning = picture.rotate(Number(button.dataset.turn)).catch(() => {});  // of a forgotten picture
                    await this.turning;
                    this.turning = null;
                    enable(true);
                    picture.data = null;
                    if (!this.active || picture !== this.picture) return;
                    this.box = [0, 0, ...picture.size];
                    viewer.draw();
                    this.draw();
                    button.focus({ preventScroll: true });
                    if (picture.preview) this.apply(null);
                };
            });
            all("[data-edge]").forEach((field) => {
                field.oninput = () => {
                    const edge = Number(field.dataset.edge), next = [...this.box];
                    if (field.value === "") return;
                    next[edge] = Number(field.value);
                    this.set(next, [edge]);
                };
                field.onblur = () => this.draw();
            });
            frame.addEventListener("pointerdown", (event) => {
                const corner = [...frame.children].indexOf(event.target);
                drag = { x: event.clientX, y: event.clientY, box: [...this.box], held: [[0, 1], [2, 1], [0, 3], [2, 3]][corner] ?? [0, 1, 2, 3] };
                frame.setPointerCapture(event.pointerId);
                event.preventDefault();
                frame.focus({ preventScroll: true });
            });
            frame.addEventListener("pointermove", (event) => {
                if (!drag) return;
                const layer = find("#stage .layer").getBoundingClientRect(), [width, height] = viewer.shown.size;
                const by = [(event.clientX - drag.x) * width / layer.width, (event.clientY - drag.y) * height / layer.height];
                this.set(drag.box.map((edge, i) => drag.held.includes(i) ? edge + by[i % 2] : edge), drag.held);
            });
            ["pointerup", "pointercancel"].forEach((kind) => frame.addEventListener(kind, () => { drag = null; }));
            frame.addEventListener("keydown", (event) => {
                const by = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
                if (event.key === "Escape") this.cancel();
                else if (event.key === "Enter") this.apply(this.box);
                else if (by) {
                    const step = Math.max(1, Math.round(Math.max(...viewer.shown.size) / 100));
                    const held = event.shiftKey ? [2, 3] : [0, 1, 2, 3];
                    this.set(this.box.map((edge, i) => held.includes(i) ? edge + step * by[i % 2] : edge), held);
                } else return;
                event.preventDefault();
            });
        },

        // Asks for the answer with this crop; null: with the automatic cut.
        apply(box) {
            if (this.turning) return;
            const { picture } = this;
            const whole = box && box.join() === [0, 0, ...picture.size].join();
            picture.crop = box && !(whole && !picture.data) ? box : null;
            picture.path = "";  // the server has deleted the original
            this.stop();
            window.dermrw.one.ask({ focus: true });
        },
    };
