/* What a panel may be given. Each names in its constructor what it takes of this, and `tsc` holds it to that; app.js
   puts it together. Panels know each other through these functions alone. */

import type { Grid } from "../blocks/grid.js";
import type { Row, TabState } from "../types.js";
import type { Catalog } from "./catalog.js";
import type { Library } from "./library.js";
import type { State } from "./state.js";

type Item = import("../types.js").Item;

export interface Needs {
    /** what is set up. */
    state: State;
    /** what the server knows and the tab offers. */
    catalog: Catalog;
    /** the LoRAs in the folders. */
    library: Library;
    /** asks the server; a refusal is shown, and answered with null. */
    ask(op: string, fields: object): Promise<any>;
    /** asks the server; a refusal is an Error. */
    request(op: string, fields: object): Promise<any>;
    /** shows a message; one about what went wrong stays until it is dismissed. */
    say(text: string | Node, bad?: boolean): void;
    /** the message that is shown. */
    said(): string;

    /** brings a recipe's state into the tab; false where a source of it is missing. */
    use(state: TabState, from?: { entry?: string; name?: string }, lacking?: string[]): boolean;
    /** opens the recipe of a LoRA, an entry of the history or a saved one. */
    open(which: { key?: string; entry?: string; recipe?: string; name?: string }): Promise<boolean>;
    /** carries out what an advice or an offer changes of the set-up. */
    change(title: string, changes: object): Promise<void>;
    addSource(key: string): void;
    verify(key: string): Promise<void>;
    /** after a LoRA was saved: the list, the history and the WebUI's cards. */
    afterSave(): Promise<void>;

    /** what the scripts of txt2img and img2img are told of the set-up, as JSON. */
    setup(more?: object): string;
    tellScripts(more?: object): void;
    /** shows a part of the merge to the comparison script, until something is changed. */
    compareOnly(state: TabState): void;

    /** merges what is set up, or another state; null where nothing was saved. */
    merge(state?: object): Promise<any>;
    /** follows a job that was started, shows how far it is, and what came of it with `then`. */
    follow(started: any, then: (result: any) => void): Promise<any>;
    /** shows a saved merge. */
    saved(result: any): void;
    /** a merge is under way. */
    working(): boolean;
    /** says anew how strong each source goes in. */
    weigh(): void;
    /** puts a tag into the prompt of txt2img. */
    useTag(tag: string, text?: string): void;
    /** looks again whether the file of the merge that is shown is still there under its name. */
    recheck(): Promise<void>;

    /** goes to the comparison in txt2img, of what is set up or of a name. */
    compare(name?: string): Promise<any>;
    preview(): Promise<any>;

    /** shows one of the panels beside what is set up, by its name. */
    see(panel: string): void;
    /** opens the panel in which a row is saved as a preset. */
    savePreset(row: Row): void;
    refreshHistory(): void;
    /** opens the validation of an entry of the history. */
    validate(entry: string): Promise<void>;

    /** the mark that keeps a row's ratio as it is, as a speed LoRA's does. */
    held(row: Row): any;
    /** opens the picker at a button. */
    pick(
        anchor: HTMLElement,
        place: HTMLElement,
        choose: (item: Item) => void,
        more: { current: string; family: string },
    ): void;

    /** the block weights. */
    readonly grid: Pick<Grid, "columns" | "rows" | "weight" | "hint" | "render">;
}
