() => {
    // pasted pictures go where dragged ones go
    addEventListener("paste", (event) => {
        const files = [...(event.clipboardData?.files ?? [])];
        const input = [...document.querySelectorAll("#upload input[type=file], #many input[type=file]")]
            .find((one) => one.closest("[role=tabpanel]")?.offsetParent !== null);
        if (!files.length || !input) return;
        const all = new DataTransfer();
        files.forEach((file) => all.items.add(file));
        input.files = all.files;
        input.dispatchEvent(new Event("change", { bubbles: true }));
    });
    // Gradio 6.31 forgets to translate this one
    const name = () => document.querySelectorAll("[aria-label='common.upload']").forEach((button) => {
        button.ariaLabel = button.title = "Add pictures";
    });
    // nor does it make one group of a choice, in which the arrow keys move
    const group = () => ["one-prevalence", "many-prevalence"].forEach((id) => {
        document.querySelectorAll(`#${id} input[type=radio]`).forEach((radio) => { radio.name = id; });
    });
    // the reference outlasts another prevalence, and not another choice of pictures
    let reference = "", pictures = "";
    addEventListener("input", (event) => {
        if (event.target.matches(".remark input")) reference = event.target.value;
    });
    const refer = () => {
        const field = document.querySelector("#result .remark input");
        const now = document.querySelector("#upload .file-preview")?.textContent ?? "";
        if (now !== pictures) {
            pictures = now;
            reference = "";
            if (field) field.value = "";
        } else if (field && !field.value) field.value = reference;
    };
    const mend = () => { name(); group(); refer(); };
    mend();
    new MutationObserver(mend).observe(document.body, { childList: true, subtree: true });
}
