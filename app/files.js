    // --- files.js ---
    const MOST_FILES = 1000;  // of a dropped folder

    // Uploads files; returns their paths on the server, which lets the page refer to them. `progress` gets a share 0…1,
    // and `requests` holds the request while it runs, so that it can be aborted.
    const upload = (files, progress, requests) => new Promise((resolve, reject) => {
        const form = new FormData(), request = new XMLHttpRequest();
        // of a file that is too large, enough is sent for the server to name it
        const most = Number(find("#upload").dataset.most);
        files.forEach((file) => form.append("files", file.size > most ? file.slice(0, most + 1) : file, file.name));
        request.open("POST", new URL("gradio_api/upload", document.baseURI));
        request.upload.onprogress = (event) => event.lengthComputable && progress?.(event.loaded / event.total);
        request.onload = () => {
            if (request.status === 200) { resolve(JSON.parse(request.responseText)); return; }
            const error = new Error(request.responseText.trim().slice(0, 200) || `The upload failed (status ${request.status}).`);
            error.final = request.status >= 400 && request.status < 500;  // the same files would be refused again
            reject(error);
        };
        request.onerror = request.onabort = () => reject(new Error("The server cannot be reached."));
        request.onloadend = () => requests.delete(request);
        requests.add(request);
        request.send(form);
    });

    // Gradio's form of an uploaded file. The server takes only the path, and checks it.
    const fileData = (path) => ({ path, meta: { _type: "gradio.FileData" } });

    // Returns the files below a dropped entry. The browser would pass a folder as one empty file.
    const filesBelow = async (entry) => {
        if (entry.name.startsWith(".")) return [];
        if (entry.isFile) return [await new Promise((resolve, reject) => entry.file(resolve, reject))];
        const reader = entry.createReader(), files = [];
        for (;;) {
            const entries = await new Promise((resolve, reject) => reader.readEntries(resolve, reject));
            if (!entries.length || files.length >= MOST_FILES) return files;
            for (const inner of entries) files.push(...await filesBelow(inner));
        }
    };

    const droppedFiles = async (transfer) => {
        const entries = [...transfer.items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean);
        if (!entries.some((entry) => entry.isDirectory)) return [...transfer.files];
        const files = [];
        for (const entry of entries) files.push(...await filesBelow(entry));
        return files;
    };

    // A picture of this tab: the file as the user gave it, and what the server answered about it.
    class Picture {
        constructor(file, name = file.name) {
            this.file = file;
            this.name = name;
            this.path = "";          // on the server, while its result is kept there
            this.turn = 0;           // quarter turns clockwise
            this.crop = null;        // [left, top, right, bottom] in pixels of the turned picture
            this.data = null;        // the server's result
            this.preview = false;    // whether the browser can't show the file, so that the server has to
            this.original = URL.createObjectURL(file);
            this.url = this.original;  // of the picture as shown
        }

        // Reads the file as the browser shows it. If the browser can't, the server sends a preview with its answer.
        async read() {
            const image = new Image();
            image.src = this.original;
            try {
                await image.decode();
                this.natural = [image.naturalWidth, image.naturalHeight];
            } catch {
                this.preview = true;
                this.url = "";
            }
        }

        // Turns the shown picture by quarter turns, in the browser.
        async rotate(quarters) {
            this.turn = (this.turn + quarters) % 4;
            this.crop = null;
            this.path = "";
            if (this.preview) { this.url = ""; return; }  // until the server's next answer
            const image = new Image();
            image.src = this.original;
            await image.decode();
            const odd = this.turn % 2, canvas = document.createElement("canvas");
            const [width, height] = [image.naturalWidth, image.naturalHeight];
            [canvas.width, canvas.height] = odd ? [height, width] : [width, height];
            const context = canvas.getContext("2d");
            context.translate(canvas.width / 2, canvas.height / 2);
            context.rotate(this.turn * Math.PI / 2);
            context.drawImage(image, -width / 2, -height / 2);
            const blob = await new Promise((resolve) => { canvas.toBlob(resolve, "image/png"); });
            if (this.url !== this.original) URL.revokeObjectURL(this.url);
            this.url = this.turn ? URL.createObjectURL(blob) : this.original;
            this.natural = [canvas.width, canvas.height];
        }

        // Takes the server's result. Returns whether the browser reads the file otherwise than the server, for a preview.
        take(data) {
            this.data = data;
            if (data.preview) this.url = data.preview;
            else if (!this.preview && this.natural && this.natural.some((side, i) => side !== data.size[i])) {
                this.preview = true;
                this.path = "";
                return true;
            }
            return false;
        }

        get size() { return this.data?.size ?? this.natural ?? [4, 3]; }

        forget() {
            [this.original, this.url].forEach((url) => url.startsWith("blob:") && URL.revokeObjectURL(url));
        }
    }
