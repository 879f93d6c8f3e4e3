    // --- viewer.js ---
    // Shows one picture of the lesion: the whole original, the part that was cut and the part that the model saw, zoom, heat map.
    const viewer = {
        pictures: [], shown: null, zoom: 1, x: 0, y: 0, classes: [],
        presses: [],  // times of the last two presses on the stage

        // Shows the pictures of a lesion, `selected` large.
        show(pictures, selected = pictures[0] ?? null) {
            this.pictures = pictures;
            find("#upload").hidden = pictures.length > 0;
            find("#stage").hidden = find("#tool-box").hidden = !pictures.length;
            find("#add").disabled = !pictures.length;
            this.presses = [];
            this.select(selected);
        },

        select(picture) {
            if (cropping.active && picture !== cropping.picture) cropping.cancel();
            if (picture !== this.shown) this.reset();
            this.shown = picture;
            this.draw();
            this.drawThumbs();
        },

        draw() {
            const picture = this.shown, image = find("#picture"), layer = find("#stage .layer");
            find("#stage .zoom").hidden = find("#crop-tool").hidden = !picture?.url;
            if (!picture) { image.removeAttribute("src"); find("#caption").textContent = ""; return; }
            const [width, height] = picture.size, data = picture.data;
            layer.style.setProperty("--ratio", width / height);
            layer.style.visibility = picture.url ? "" : "hidden";
            if (picture.url && image.getAttribute("src") !== picture.url) image.src = picture.url;
            image.alt = picture.name;
            this.drawMarks();
            find("#caption").textContent = this.caption();
            find("#heat-tool").hidden = !data?.map;
            this.drawHeat();
        },

        caption() {
            const { data, crop } = this.shown;
            if (!data) return "";
            const whole = [0, 0, ...data.size].join(), cut = data.cut.join(), seen = data.seen.join();
            if (seen === whole) return "";
            const about = crop ? "Dashed: your crop. " : cut !== whole ? "Dashed: without the border. " : "";
            return `${cut === whole || cut === seen ? about.replace("Dashed", "Bright") : about}${cut === seen && about ? "" : "Bright: model input."}`;
        },

        // Darkens what the model does not see, and draws the cut (dashed) and the seen part.
        drawMarks() {
            const svg = find("#stage .marks"), { data } = this.shown, [width, height] = this.shown.size;
            svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
            const whole = [0, 0, width, height];
            const path = ([l, t, r, b]) => `M${l} ${t}H${r}V${b}H${l}Z`;
            const line = (box, kind) => `<path class="under" d="${path(box)}"/><path class="${kind}" d="${path(box)}"/>`;
            if (!data || cropping.active || data.seen.join() === whole.join()) { svg.innerHTML = ""; return; }
            svg.innerHTML = `<path class="shade" fill-rule="evenodd" d="${path(whole)}${path(data.seen)}"/>`
                + (data.cut.join() !== whole.join() && data.cut.join() !== data.seen.join() ? line(data.cut, "cut") : "")
                + line(data.seen, "seen");
        },

        drawHeat() {
            const canvas = find("#stage .heat"), data = this.shown?.data, opacity = find("#heat-opacity").value / 100;
            canvas.style.opacity = opacity;
            find("#heat-tool .gradient").style.background = scaleGradient(Math.max(opacity, 0.15));
            if (!data?.map || opacity === 0 || cropping.active) { canvas.hidden = true; return; }
            const [l, t, r, b] = data.seen, [width, height] = data.size;
            Object.assign(canvas.style, {
                left: `${100 * l / width}%`, top: `${100 * t / height}%`,
                width: `${100 * (r - l) / width}%`, height: `${100 * (b - t) / height}%`,
            });
            drawHeat(canvas, data.map, Number(find("#heat-class").value), (r - l) / (b - t));
            canvas.hidden = false;
        },

        // Fills the choice of the heat map's class; the user's choice stays.
        offer(classes) {
            const select = find("#heat-class"), chosen = select.dataset.chosen ?? "";
            select.innerHTML = "";
            classes.forEach(({ index, name }) => select.add(new Option(name, index)));
            if (classes.some(({ index }) => String(index) === chosen)) select.value = chosen;
        },

        drawThumbs() {
            const list = find("#thumbs");
            list.innerHTML = "";
            if (this.pictures.length < 2) return;
            this.pictures.forEach((picture) => {
                const item = document.createElement("li"), button = document.createElement("button"), text = document.createElement("span");
                const remove = document.createElement("button");
                button.type = remove.type = "button";
                button.setAttribute("aria-pressed", picture === this.shown);
                if (picture.url) {
                    const image = new Image();
                    image.src = picture.url;
                    image.alt = "";
                    button.append(image);
                }
                const data = picture.data;
                text.textContent = data ? `${data.mark} ${[data.label, data.text].filter(Boolean).join(": ")}` : picture.name;
                text.className = data?.decision ?? "";
                button.title = picture.name;
                button.append(text);
                button.onclick = () => this.select(picture);
                remove.textContent = "×";
                remove.className = "remove";
                remove.setAttribute("aria-label", `Remove ${picture.name}`);
                remove.onclick = () => window.dermrw.one.remove(picture);
                item.append(button, remove);
                list.append(item);
            });
        },

        reset() { this.zoomTo(1); },

        // Zooms to a factor, so that the point (px, py) of the stage, from its middle, stays in place.
        zoomTo(factor, px = 0, py = 0) {
            const next = Math.min(16, Math.max(1, factor)), change = next / this.zoom;
            this.x = px - (px - this.x) * change;
            this.y = py - (py - this.y) * change;
            this.zoom = next;
            this.move(0, 0);
        },

        move(dx, dy) {
            const stage = find("#stage"), slack = (this.zoom - 1) / 2;
            const clamp = (value, most) => Math.min(most, Math.max(-most, value));
            this.x = clamp(this.x + dx, slack * stage.clientWidth);
            this.y = clamp(this.y + dy, slack * stage.clientHeight);
            find(".layer", stage).style.transform = `translate(${this.x}px, ${this.y}px) scale(${this.zoom})`;
            stage.classList.toggle("zoomed", this.zoom > 1);
        },

        // Connects mouse, touch and keyboard.
        connect() {
            const stage = find("#stage"), pointers = new Map();
            const fromMiddle = (event) => {
                const box = stage.getBoundingClientRect();
                return [event.clientX - box.left - box.width / 2, event.clientY - box.top - box.height / 2];
            };
            all("[data-zoom]", stage).forEach((button) => {
                button.onclick = () => this.zoomTo({ in: 1.5 * this.zoom, out: this.zoom / 1.5, reset: 1 }[button.dataset.zoom]);
            });
            stage.addEventListener("dblclick", (event) => {
                // the first click of a double click may have been on an example, before there was a picture
                if (this.presses.length === 2 && !event.target.closest("button") && !cropping.active) this.zoomTo(this.zoom > 1 ? 1 : 3, ...fromMiddle(event));
            });
            stage.addEventListener("wheel", (event) => {
                if (!event.ctrlKey && this.zoom === 1) return;  // the page scrolls
                event.preventDefault();
                this.zoomTo(this.zoom * Math.exp(-event.deltaY / 300), ...fromMiddle(event));
            }, { passive: false });
            stage.addEventListener("keydown", (event) => {
                if (event.target !== stage || event.altKey || event.ctrlKey || event.metaKey) return;
                const step = 60, moves = { ArrowLeft: [step, 0], ArrowRight: [-step, 0], ArrowUp: [0, step], ArrowDown: [0, -step] };
                if ("+=".includes(event.key)) this.zoomTo(1.5 * this.zoom);
                else if (event.key === "-") this.zoomTo(this.zoom / 1.5);
                else if (event.key === "0") this.zoomTo(1);
                else if (moves[event.key] && this.zoom > 1) this.move(...moves[event.key]);
                else return;
                event.preventDefault();
            });
            stage.addEventListener("pointerdown", (event) => {
                if (cropping.active || event.target.closest("button")) return;
                this.presses = [...this.presses, event.timeStamp].slice(-2);
                pointers.set(event.pointerId, [event.clientX, event.clientY]);
                stage.setPointerCapture(event.pointerId);
            });
            stage.addEventListener("pointermove", (event) => {
                const last = pointers.get(event.pointerId);
                if (!last) return;
                const distance = () => {
                    const [[ax, ay], [bx, by]] = [...pointers.values()];
                    return Math.hypot(ax - bx, ay - by);
                };
                if (pointers.size === 2) {
                    const before = distance();
                    pointers.set(event.pointerId, [event.clientX, event.clientY]);
                    this.zoomTo(this.zoom * distance() / Math.max(1, before), ...fromMiddle(event));
                } else if (this.zoom > 1) this.move(event.clientX - last[0], event.clientY - last[1]);
                pointers.set(event.pointerId, [event.clientX, event.clientY]);
            });
            ["pointerup", "pointercancel"].forEach((kind) => stage.addEventListener(kind, (event) => pointers.delete(event.pointerId)));
            find("#heat-opacity").oninput = () => this.drawHeat();
            find("#heat-class").onchange = (event) => {
                event.target.dataset.chosen = event.target.value;
                if (find("#heat-opacity").value === "0") find("#heat-opacity").value = 60;
                this.drawHeat();
            };
        },
    };
