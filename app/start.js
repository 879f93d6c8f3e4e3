    // --- start.js ---
    // Connects the scripts to the page, once Gradio has built it.
    const start = () => {
        const { one, many } = window.dermrw;
        const places = { upload: (files) => one.start(files), frame: (files) => one.start(files), many: (files) => many.add(files) };
        const manyShown = () => find("#many")?.offsetParent !== null && find("#many") !== null;
        let adding = false;  // whether the next chosen files belong to the same lesion
        viewer.connect();
        cropping.connect();
        many.connect();
        prevalence.connect(() => { one.ask(); many.ask(); });
        const choose = (more) => { adding = more; find("#one-input").click(); };
        find("#new").onclick = () => one.start([]);
        find("#add").onclick = () => choose(true);
        document.addEventListener("change", ({ target }) => {
            if (!target.matches("#one-input, #many-input") || !target.files.length) return;
            const files = [...target.files];
            target.value = "";
            if (target.id === "many-input") many.add(files);
            else if (adding) one.add(files);
            else one.start(files);
            adding = false;
        });
        find("#one-input").addEventListener("cancel", () => { adding = false; });
        addEventListener("keydown", (event) => {
            if (!event.altKey || event.ctrlKey || event.metaKey || manyShown()) return;
            if (event.code === "KeyN") one.start([]);
            else if (event.code === "KeyA" && viewer.pictures.length) choose(true);
            else return;
            event.preventDefault();
        });
        addEventListener("paste", (event) => {
            const files = [...event.clipboardData?.files ?? []];
            if (files.length) manyShown() ? many.add(files) : one.start(files);
        });
        // A drop anywhere else must not make the browser leave the page for the file.
        addEventListener("dragover", (event) => {
            if (!event.dataTransfer?.types.includes("Files")) return;
            event.preventDefault();
            event.target.closest?.("#frame, #many")?.classList.add("over");
        });
        ["dragleave", "drop"].forEach((kind) => addEventListener(kind, () => all(".over").forEach((box) => box.classList.remove("over")), true));
        addEventListener("drop", async (event) => {
            event.preventDefault();
            const place = manyShown() ? "many" : "frame";
            const files = await droppedFiles(event.dataTransfer);
            if (files.length) places[place](files);
        });
        let clicks = 0, ofExample = -1;  // the last click on an example counts, unless another lesion was begun since
        all("[data-example]").forEach((button) => {
            button.onclick = async () => {
                const { example, address } = button.dataset, lesion = one.lesions, click = clicks += 1;
                const response = await fetch(address || find("img", button).src).catch(() => null);
                if (click !== clicks || ![lesion, ofExample].includes(one.lesions)) return;
                if (!response?.ok) one.status("This example can't be read: choose another.");
                else {
                    one.start([new File([await response.blob()], example, { type: "image/jpeg" })]);
                    ofExample = one.lesions;
                }
            };
        });
        addEventListener("input", ({ target }) => {
            if (target.matches?.(".remark input")) one.reference = target.value;
        });
        addEventListener("beforeprint", () => {
            all("#result details").forEach((details) => { details.dataset.was = details.open; details.open = true; });
            one.print();
        });
        addEventListener("afterprint", () => {
            all("#result details").forEach((details) => { details.open = details.dataset.was === "true"; });
        });
        ["one", "many"].forEach((name) => {
            const raw = find(`#${name}-raw`);
            new MutationObserver(() => window.dermrw[name].answered(raw)).observe(raw, { childList: true, subtree: true, attributes: true });
        });
        document.documentElement.dataset.ready = "true";
    };
    // Gradio builds the page piece by piece.
    const needed = ["#upload", "#stage", "#tool-box", "#result", ".prevalence", "#one-go", "#many-go", "#one-raw", "#many-raw"];
    const wait = () => needed.every((selector) => find(selector)) ? start() : setTimeout(wait, 30);
    wait();
