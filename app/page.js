() => {
    // Pasted images go to the upload field of the visible tab, as dropped ones do.
    addEventListener("paste", (event) => {
        const files = [...(event.clipboardData?.files ?? [])];
        const input = [...document.querySelectorAll("#upload input[type=file], #many input[type=file]")]
            .find((field) => field.closest("[role=tabpanel]")?.offsetParent !== null);
        if (!files.length || !input) return;
        const transfer = new DataTransfer();
        files.forEach((file) => transfer.items.add(file));
        input.files = transfer.files;
        input.dispatchEvent(new Event("change", { bubbles: true }));
    });
    // A dropped folder gives its files. The browser itself, and so Gradio, would pass the folder as one empty file.
    const MOST_FILES = 1000;
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
    addEventListener("drop", async (event) => {
        const field = event.target.closest?.("#upload, #many")?.querySelector("input[type=file]");
        const entries = [...(event.dataTransfer?.items ?? [])].map((item) => item.webkitGetAsEntry?.()).filter(Boolean);
        if (!field || !entries.some((entry) => entry.isDirectory)) return;
        event.preventDefault();
        event.stopPropagation();
        const transfer = new DataTransfer();
        for (const entry of entries) (await filesBelow(entry)).forEach((file) => transfer.items.add(file));
        field.files = transfer.files;
        field.dispatchEvent(new Event("change", { bubbles: true }));
    }, true);
    // Gradio 6.31 has no translation for this button's label.
    const labelUploadButtons = () => document.querySelectorAll("[aria-label='common.upload']").forEach((button) => {
        button.ariaLabel = button.title = "Add images";
    });
    // Gradio 6.31 gives radio buttons no common name: without one, the arrow keys do not move between them.
    const groupRadioButtons = () => ["one-prevalence", "many-prevalence"].forEach((id) => {
        document.querySelectorAll(`#${id} input[type=radio]`).forEach((radio) => { radio.name = id; });
    });
    // The reference stays when another prevalence is selected, and is cleared when the images change.
    let reference = "", shownFiles = "";
    addEventListener("input", (event) => {
        if (event.target.matches(".remark input")) reference = event.target.value;
    });
    const restoreReference = () => {
        const field = document.querySelector("#result .remark input");
        const files = document.querySelector("#upload .file-preview")?.textContent ?? "";
        if (files !== shownFiles) {
            shownFiles = files;
            reference = "";
            if (field) field.value = "";
        } else if (field && !field.value) field.value = reference;
    };
    const update = () => { labelUploadButtons(); groupRadioButtons(); restoreReference(); };
    update();
    new MutationObserver(update).observe(document.body, { childList: true, subtree: true });
}
