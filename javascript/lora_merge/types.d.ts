/* Made by `python -m tests.typescript` from the dataclasses of lib_merge/ui; change those. */

/** Names a merge of the history to run again. */
export interface AgainRequest {
    entry: string;
    /** of the file; its own by default: the same bytes again. */
    name?: string;
}

/** How far an analysis is; `report` where it has grown beyond what the page has. */
export interface AnalysisReply {
    /** its number. */
    job: number;
    what: "merge" | "verify" | "analyze" | "report" | "sweep";
    state: "waiting" | "running" | "done" | "failed" | "cancelled";
    /** queue while the host is busy, survey, merge, verify, save. */
    stage: string;
    /** modules of this stage. */
    done: number;
    total: number;
    /** of the whole, 0 to 1; never goes back. */
    share: number;
    /** seconds, null while it cannot be told. */
    left: number | null;
    /** why it failed, one sentence. */
    error: string;
    seconds: number;
    /** of a merge the report, its key, its prompt tag. */
    result: Record<string, any> | null;
    report?: Record<string, any> | null;
}

/** Names the job of an analysis. */
export interface AnalysisRequest {
    job: number;
    /** the stage of the report that the page has. */
    have?: string;
}

/** Carries what is to be analysed. */
export interface AnalyzeRequest {
    state: TabState;
    /** also carry out methods that work number by number. */
    all?: boolean;
}

/** What would be saved; nothing was written. */
export interface AnewReply {
    before: FileNow;
    /** the same estimate as of any merge: name, rank, bytes, exact or at most. */
    plan: Outlook;
    /** the new file is larger than the one it is made of. */
    larger: boolean;
    /** what a person should know before saving. */
    said: string[];
    /** for `merge`, which saves it; the tab's own set-up is another. */
    state: TabState;
}

/** One LoRA and what it is to become. */
export interface AnewRequest {
    /** of the LoRA, as `loras` lists it. */
    key: string;
    /** lossless: as it is. */
    rank?: Rank;
    /** the new LoRA at 1 is the old one at this strength. */
    strength?: number;
    /** a list, a preset's name, or OUT00-OUT05=0.5,M00=1. */
    blocks?: string;
    /** a spelling, or a host that must know them; empty: every host. */
    names?: string;
    precision?: "fp16" | "bf16" | "float";
    /** of the name; empty: one is made that says what is changed. */
    template?: string;
    /** below the first LoRA folder. */
    folder?: string;
}

/** Carries what is set up and what to change of it. */
export interface ApplyRequest {
    state: TabState;
    changes?: Changes;
}

/** Block weights as people write them. */
export interface BlocksRequest {
    /** a list, a preset's name, or OUT00-OUT05=0.5,M00=1. */
    text?: string;
    family?: string;
}

/** What has become of a merge's file; `prompt` is empty where there is nothing to load. */
export interface CardReply {
    /** renamed: under another name or in another folder; replaced: another merge has its name now. */
    state: "there" | "renamed" | "replaced" | "trash" | "gone";
    /** of the file now, empty where there is none. */
    key: string;
    /** its stem now. */
    name: string;
    /** for *Use in txt2img*: ask for it then. */
    prompt: string;
    triggers: string;
    /** id in the trash, for `restore`; empty elsewhere. */
    thrown: string;
    /** one sentence; empty where nothing has changed. */
    said: string;
}

/** Names the merge that a card shows. */
export interface CardRequest {
    /** of the history; empty where the merge could not be written there. */
    entry?: string;
    /** of the file, as the merge's result had it. */
    key?: string;
}

/** What an advice changes; lists hold one value per source of the recipe, null leaves one as it is. */
export interface Changes {
    ratios?: (number | null)[] | null;
    te_ratios?: (number | number[] | null)[] | null;
    blocks?: (Record<string, number> | string | null)[] | null;
    roles?: (string | null)[] | null;
    method?: string | null;
    knobs?: Record<string, number | boolean | string | number[]> | null;
    /** a policy as people type it. */
    rank?: number | string | null;
    precision?: string | null;
    /** the sources that stay, by their places. */
    keep?: number[] | null;
    /** handles of sources that stay outside the merge of the others, added on top. */
    aside?: string[] | null;
}

/** What the panel offers. */
export interface CompareChoicesReply {
    columns: string[];
    /** columns that are on at first. */
    ticked: string[];
    samplers: string[];
    /** of recipes. */
    names: string[];
}

/** Two merges side by side; lists of two are of the first and the second. */
export interface CompareReply {
    entries: Record<string, any>[];
    /** entries without a report. */
    missing: string[];
    /** what changed between their recipes. */
    changes: string[];
    sources: Record<string, any>[][];
    whole: Record<string, any>[];
    pairs: Record<string, any>[][];
    blocks: Record<string, any>[];
}

/** A comparison: its sources, columns, rows and figures; null where there is none. */
export interface ComparisonReply {
    found: Record<string, any> | null;
}

/** Names a comparison, the newest by default. */
export interface ComparisonRequest {
    comparison?: string;
}

/** The settings of the host when the set-up was begun: what was left so follows them. */
export interface Defaults {
    template?: string;
    folder?: string;
    precision?: string;
    names?: string;
}

/** One merge. */
export interface Entry {
    id: string;
    time: string;
    name: string;
    key: string;
    recipe: Record<string, any>;
    method: string;
    sources: Record<string, any>[];
    report: Record<string, any>;
    based_on: string;
    verdict: Record<string, any>;
    notes: string;
    rating: number;
    status: string;
    grid: string;
    asked: Record<string, any>;
}

/** Names a merge of the history. */
export interface EntryRequest {
    entry: string;
}

/** How many pictures that makes, or what is wrong with it. */
export interface EstimateReply {
    said: string;
    wrong: boolean;
}

/** What the panel and the tab are set to, both as JSON text. */
export interface EstimateRequest {
    asked?: string;
    setup?: string;
}

/** Asks for an analysis as a file. */
export interface ExportRequest {
    job: number;
    /** page: html without its longest tables. */
    form?: "html" | "page" | "json";
}

/** The blocks of a base model. */
export interface FamilyInfo {
    blocks: string[];
    /** what each block is known to carry. */
    hints: Record<string, string>;
    /** the blocks of the usual list of weights, in its order. */
    list: string[];
    /** what the ratios of the text encoders are called. */
    te_ratios: string[];
}

/** The file as it is. */
export interface FileNow {
    /** least and most of any module. */
    rank: number[];
    bytes: number;
    /** LoRA, LoHa, LoKr, …. */
    kinds: string[];
}

/** How the sources of a group are merged before they enter the merge as one. */
export interface Group {
    /** the merge method. */
    method?: string;
    ratio?: number;
    /** settings by method and name; those of other methods are kept and change nothing. */
    knobs?: Record<string, Record<string, number | boolean | string | number[]>>;
}

/** Entries, newest first. */
export interface HistoryReply {
    entries: Entry[];
    /** how many there are in all. */
    total: number;
    /** by id: what works beside Load; nothing of a file that is not there. */
    can: Record<string, ("again" | "verify" | "rename" | "use" | "changes")[]>;
    /** by id: for menus, short and unlike every other. */
    labels: Record<string, string>;
}

/** Asks for what was merged. */
export interface HistoryRequest {
    /** words in names, sources, methods and notes. */
    search?: string;
    /** how many entries. */
    count?: number;
}

/** What is to be changed of an entry; null leaves it as it is. */
export interface HistoryUpdateRequest {
    entry: string;
    verdict?: Verdict | null;
    notes?: string | null;
    status?: "ok" | "revise" | null;
    rating?: number | null;
}

/** One line of the report. */
export interface ImportLine {
    number: number;
    outcome: string;
    says: string;
}

/** What the page must know once. */
export interface InitReply {
    methods: MethodInfo[];
    families: Record<string, FamilyInfo>;
    /** the one that is meant where none is said or told. */
    usual_family: string;
    hints: Record<string, string>;
    /** by family. */
    presets: Record<string, PresetInfo[]>;
    host: string;
    /** there is a txt2img tab to send things to. */
    can_generate: boolean;
    settings: Settings;
    /** [how the modules of a merge can be called, in words]. */
    namings: string[][];
    warnings: string[];
}

/** What header, tensors and training notes of a LoRA say. */
export interface InspectReply {
    found: Record<string, any>;
}

/** One LoRA, as its header tells it. */
export interface Item {
    key: string;
    name: string;
    folder: string;
    alias: string;
    family: string;
    candidates: string[];
    kinds: string[];
    rank: number[];
    size: number;
    mtime: number;
    te: boolean;
    convolutions: boolean;
    blocks: string[];
    tags: string[];
    has_recipe: boolean;
    marks: Mark[];
    preview: string;
    problem: string;
}

/** How far a job is. */
export interface JobReply {
    /** its number. */
    job: number;
    what: "merge" | "verify" | "analyze" | "report" | "sweep";
    state: "waiting" | "running" | "done" | "failed" | "cancelled";
    /** queue while the host is busy, survey, merge, verify, save. */
    stage: string;
    /** modules of this stage. */
    done: number;
    total: number;
    /** of the whole, 0 to 1; never goes back. */
    share: number;
    /** seconds, null while it cannot be told. */
    left: number | null;
    /** why it failed, one sentence. */
    error: string;
    seconds: number;
    /** of a merge the report, its key, its prompt tag. */
    result: Record<string, any> | null;
}

/** Names a job. */
export interface JobRequest {
    /** its number. */
    job: number;
}

/** The key of a LoRA. */
export interface KeyReply {
    key: string;
}

/** A setting of a method. */
export interface KnobInfo {
    name: string;
    /** what people call it. */
    title: string;
    kind: "choice" | "switch" | "whole" | "number";
    default: number | boolean | string;
    minimum: number;
    maximum: number;
    step: number;
    choices: string[];
    help: string;
    /** recipe: one value; source: one, or a list of one for each source. */
    scope: "recipe" | "source";
}

/** What is new, changed and gone; an item lacks what is empty or follows from the rest. */
export interface LibraryReply {
    items: Record<string, any>[];
    /** keys. */
    gone: string[];
    /** this is the whole list. */
    full: boolean;
    since: string;
    /** headers looked at by the scan that runs or ran last. */
    done: number;
    total: number;
}

/** Asks for the list, or for what changed of it. */
export interface LibraryRequest {
    /** look at the folders again. */
    refresh?: boolean;
    /** what the answer before had in `since`, empty for everything. */
    since?: string;
}

/** Sentences. */
export interface LinesReply {
    lines: string[];
}

/** Norm and share of energy per block; what is not measured yet is absent. */
export interface LookReply {
    /** by key. */
    found: Record<string, Record<string, any>>;
    /** some are being measured. */
    reading: boolean;
}

/** Asks for what is measured of LoRAs. */
export interface LookRequest {
    keys?: string[];
}

/** The stem of a LoRA. */
export interface LoraNameReply {
    name: string;
}

/** Names one LoRA. */
export interface LoraRequest {
    /** as `loras` lists it. */
    key?: string;
    /** its stem or alias, where no key is given. */
    name?: string;
}

/** Every LoRA. */
export interface LorasReply {
    items: Item[];
    done: number;
    total: number;
}

/** What a LoRA is, and what says so; made by `mark`. */
export interface Mark {
    sort: string;
    what: string;
    sure: boolean;
    evidence: string[];
    holds: boolean;
    said: string;
}

/** A merge method and its knobs. */
export interface MethodInfo {
    name: string;
    title: string;
    sentence: string;
    paper: string;
    /** where it acts. */
    space: "scalar" | "core" | "dense";
    /** the heading it stands under. */
    group: string;
    /** fewest sources. */
    least: number;
    /** most sources, null where there is no end. */
    most: number | null;
    roles: string[];
    /** the order of the sources does not matter. */
    symmetric: boolean;
    /** leaves out at random: the seed counts. */
    draws: boolean;
    knobs: KnobInfo[];
}

/** Every merge method. */
export interface MethodsReply {
    methods: MethodInfo[];
}

/** A name. */
export interface NameRequest {
    name: string;
}

/** Names of saved recipes. */
export interface NamesReply {
    names: string[];
}

/** A request without fields, or a reply that says only that it is done. */
export interface Nothing {
}

/** A change of the set-up that `apply` carries out, and why. */
export interface Offer {
    title: string;
    reason: string;
    changes: Changes;
}

/** What the tab is to be set to, and what differs from then. */
export interface OpenReply {
    state: Setup;
    notes: string[];
}

/** Names what is to be opened, by one of these. */
export interface OpenRequest {
    /** of a merged LoRA. */
    key?: string;
    /** of the history. */
    entry?: string;
    /** name of a recipe. */
    recipe?: string;
    /** a recipe as JSON text. */
    text?: string;
}

/** What a merge would make. */
export interface Outlook {
    family: string;
    /** letters of the sources that change the text encoder. */
    encoders: string[];
    modules: number;
    /** modules that weigh 0 in every source and stay out. */
    emptied: number;
    /** least and most of any module. */
    rank: number[];
    /** of the file. */
    bytes: number;
    /** ranks and bytes will be these; otherwise they are at most these. */
    exact: boolean;
    /** a rank policy, pruning or a budget may take something away. */
    cut: boolean;
    /** not `exact`, as version 0.1 said it. */
    estimate: boolean;
    /** the rank policy in force. */
    policy: string;
    /** of the file. */
    name: string;
    /** below the first LoRA folder. */
    folder: string;
    exists: boolean;
    /** key of another LoRA that answers to this name. */
    claimed: string;
    /** trigger words of the sources. */
    triggers: string;
    /** what to know before saving. */
    notes: string[];
    /** host -> how many of the modules it will load, and why not. */
    loads_in: Record<string, Record<string, any>>;
    /** what to know before saving, and what to do about it. */
    offers: Offer[];
    /** the entry that it is developed from, empty where no source is shared. */
    based_on: string;
    /** what differs from the merge it is based on. */
    changes: string[];
}

/** Where a merge is saved and what goes with it. */
export interface Output {
    /** {sources} {method} {weights} {rank} and {n}, which counts up. */
    template?: string;
    /** below the first LoRA folder. */
    folder?: string;
    overwrite?: boolean;
    /** null: those of the sources. */
    triggers?: string | null;
    notes?: string;
    /** id of the merge that it was developed from. */
    based_on?: string;
    based_on_name?: string;
    preview?: Preview | null;
}

/** Names two merges of the history. */
export interface PairRequest {
    entry: string;
    other: string;
}

/** Names a merge of the history whose partner files are to be merged alike. */
export interface PartnersRequest {
    entry: string;
}

/** A picture. */
export interface PictureReply {
    /** data: address. */
    picture: string;
}

/** The infotext of a picture, or a recipe that the WebUI's paste button has unpacked from one. */
export interface PictureTextRequest {
    text?: string;
}

/** What a merge would make. */
export interface PlanReply {
    plan: Outlook;
}

/** A preset file of another extension. */
export interface PresetFile {
    id: string;
    title: string;
}

/** Preset files of other extensions. */
export interface PresetFindReply {
    found: PresetFile[];
}

/** What an import understood, line by line. */
export interface PresetImportReply {
    /** by family. */
    presets: Record<string, PresetInfo[]>;
    lines: ImportLine[];
    notes: string[];
    /** presets that were read. */
    count: number;
    /** how many were read and refused. */
    said: string;
}

/** A preset file of another tool: its text, or one that `preset_find` found. */
export interface PresetImportRequest {
    text?: string;
    /** of the file, which tells what it is. */
    name?: string;
    family?: string | null;
    /** id of a file found beside this extension. */
    found?: string;
}

/** Block weights by name. */
export interface PresetInfo {
    name: string;
    /** saved here, not shipped. */
    own: boolean;
    hint: string;
    /** R, U and X are texts until they are drawn. */
    weights: Record<string, number | string>;
    elements: string;
}

/** A preset's name and its new one. */
export interface PresetRenameRequest {
    name: string;
    to: string;
}

/** A row's block weights under a name. */
export interface PresetSaveRequest {
    name: string;
    family?: string;
    weights?: Record<string, number>;
    /** element rules, `blocks:elements:ratio`. */
    elements?: string;
}

/** Every family's presets. */
export interface PresetsReply {
    /** by family. */
    presets: Record<string, PresetInfo[]>;
}

/** The picture of the card: that of another LoRA, or one of the person's own. */
export interface Preview {
    /** key of the LoRA whose picture is taken. */
    like?: string;
    /** data: address of a PNG, JPEG, WebP or GIF. */
    data?: string;
}

/** A picture and its infotext. */
export interface PreviewSetRequest {
    text?: string;
    /** data: address. */
    image?: string;
}

/** The rows of a prompt's tags; `state` where a picture carries a whole recipe, which says more. */
export interface PromptReply {
    rows: Row[];
    notes: string[];
    state?: Setup | null;
}

/** A prompt, an infotext, or a generated picture. */
export interface PromptRequest {
    text?: string;
    /** data: address of a PNG, JPEG or WebP. */
    image?: string;
}

/** Tags, and what tags cannot say. */
export interface PromptWriteReply {
    text: string;
    notes: string[];
}

/** Carries what is set up. */
export interface PromptWriteRequest {
    state: TabState;
}

/** The test prompts, one per line. */
export interface PromptsReply {
    prompts: string;
    said: string;
}

/** Test prompts to keep; empty brings the built-in ten back, null keeps none. */
export interface PromptsRequest {
    keep?: string | null;
}

/** How many ranks are kept; `value` is a rank, a share of 1, an error of 1 or megabytes. */
export interface Rank {
    mode?: "auto" | "lossless" | "rank" | "energy" | "error" | "budget";
    value?: number | null;
}

/** The name it has now, and all names. */
export interface RecipeSaveReply {
    name: string;
    names: string[];
}

/** What is set up, under a name. */
export interface RecipeSaveRequest {
    name: string;
    state: TabState;
    overwrite?: boolean;
}

/** Names of recipes. */
export interface RecipesReply {
    /** saved ones. */
    names: string[];
    /** every name that <merge:NAME:1> takes. */
    all: string[];
}

/** Asks for the names of recipes, or for one of them. */
export interface RecipesRequest {
    /** of the recipe to return, as plan and merge take it. */
    name?: string;
}

/** A merge as text for other places; names and notes are a stranger's and are escaped. */
export interface RecordReply {
    /** plain, a line for each. */
    text: string;
    markdown: string;
}

/** A merge of the history and its new name. */
export interface RenameRequest {
    entry: string;
    to: string;
}

/** Names a merge of the history. */
export interface ReportRequest {
    entry: string;
    form?: "html" | "json";
}

/** Names what is to go back. */
export interface RestoreRequest {
    /** its id in the trash. */
    thrown: string;
}

/** A source: a LoRA, how strong it is, and where. */
export interface Row {
    /** the page's own number of the row. */
    id?: number | null;
    /** of the LoRA, as `loras` lists it. */
    key?: string;
    /** what to call it where the key is empty; REST finds a LoRA by it. */
    name?: string;
    /** scales the whole LoRA, from -10000 to 10000. */
    ratio?: number;
    /** replaces the ratio for the text encoders, each; null where it does not. */
    te?: number | (number | null)[] | null;
    on?: boolean;
    /** the group it is merged in first: 1, 2, … or a name. */
    group?: string;
    /** where the method asks for one: style, subject. */
    role?: string;
    /** multiplies the ratio per block; 1 where a block is not named. */
    blocks?: Record<string, number>;
    /** rules `blocks:elements:ratio`, which replace block weights. */
    elements?: string;
}

/** What the host is set to for new merges. */
export interface Settings {
    template: string;
    folder: string;
    precision: string;
    names: string;
}

/** What a recipe is made of. */
export interface Setup {
    sources: Row[];
    /** by the name that rows have in `group`. */
    groups: Record<string, Group>;
    /** the merge method. */
    method: string;
    /** settings by method and name; those of other methods are kept and change nothing. */
    knobs: Record<string, Record<string, number | boolean | string | number[]>>;
    rank: Rank;
    /** rank of k×k convolutions where it differs. */
    conv_rank: number | null;
    /** leave out ranks and modules below this share of the largest. */
    prune: number;
    /** leave out ranks whose singular value is below this number. */
    prune_below: number;
    precision: "fp16" | "bf16" | "float";
    /** a spelling, or a host that must know them; empty: every host. */
    names: string;
    seed: number;
    /** the base model where the files fit several. */
    family: string | null;
}

/** What the tab is to be set to; null where there is nothing. */
export interface SetupReply {
    state: Setup | null;
}

/** Carries what is set up. */
export interface StateRequest {
    state: TabState;
}

/** One step of the checklist. */
export interface StepReply {
    step: "loads" | "pictures" | "strengths" | "prompts" | "speed";
    title: string;
    /** what is to be seen. */
    asks: string;
    state: "passed" | "failed" | "open";
    /** who has said so; a hand's word counts more. */
    by: "" | "itself" | "hand";
    /** what is known, empty where nothing is. */
    said: string;
    /** what the person wrote. */
    note: string;
}

/** What changes from file to file, and the values it takes. */
export interface Sweep {
    kind: "ratio" | "balance" | "total" | "knob" | "rank";
    /** letter of the source, or the name of a group. */
    source?: string;
    /** of a balance. */
    other?: string;
    /** of the method, by its name in `methods`. */
    knob?: string;
    /** usual ones where there are none. */
    values?: (number | boolean | string)[];
}

/** What a sweep would write; nothing was written. */
export interface SweepPlan {
    steps: SweepStep[];
    /** below the first LoRA folder. */
    folder: string;
    /** of all files together, at most. */
    bytes: number;
    /** bytes left on that disk, null where nobody can say. */
    free: number | null;
    /** all of it in one sentence, to be confirmed. */
    said: string;
}

/** What is set up, and what is to change of it. */
export interface SweepRequest {
    state: TabState;
    sweep: Sweep;
}

/** One file of a sweep. */
export interface SweepStep {
    /** of the file. */
    name: string;
    /** what is changed, in words. */
    label: string;
    /** of the merge's sources. */
    ratios: number[];
    /** least and most of any module. */
    rank: number[];
    bytes: number;
    /** rank and bytes will be these; otherwise at most these. */
    exact: boolean;
}

/** Everything that is set up in the tab. */
export interface TabState {
    sources?: Row[];
    /** by the name that rows have in `group`. */
    groups?: Record<string, Group>;
    /** the merge method. */
    method?: string;
    /** settings by method and name; those of other methods are kept and change nothing. */
    knobs?: Record<string, Record<string, number | boolean | string | number[]>>;
    rank?: Rank;
    /** rank of k×k convolutions where it differs. */
    conv_rank?: number | null;
    /** leave out ranks and modules below this share of the largest. */
    prune?: number;
    /** leave out ranks whose singular value is below this number. */
    prune_below?: number;
    precision?: "fp16" | "bf16" | "float";
    /** a spelling, or a host that must know them; empty: every host. */
    names?: string;
    seed?: number;
    /** the base model where the files fit several. */
    family?: string | null;
    output?: Output;
    /** of this record, as browsers keep it. */
    version?: number;
    /** the number of the next row. */
    next?: number;
    defaults?: Defaults | null;
    /** the generation that reads this is the tab's preview. */
    preview?: boolean;
}

/** A prompt to test merges with; `{trigger}` stands for the trigger words. */
export interface TestPrompt {
    /** what it tests. */
    family: string;
    text: string;
    /** what is to be kept out. */
    negative: string;
    /** beyond what the merge was made for. */
    extreme: boolean;
}

/** The ten test prompts, the usual ones first and the extremes among them. */
export interface TestPromptsReply {
    prompts: TestPrompt[];
    /** the same as the comparison's field of prompts takes them, one a line. */
    lines: string;
}

/** A file's text; null where there is none. */
export interface TextReply {
    text: string | null;
}

/** A LoRA in the trash. */
export interface ThrownLora {
    id: string;
    /** of its file. */
    name: string;
    /** ISO 8601. */
    time: string;
    /** deleted or replaced. */
    why: string;
}

/** What can go back, the newest first. */
export interface TrashReply {
    thrown: ThrownLora[];
}

/** How far a merge is validated. */
export interface ValidationReply {
    entry: string;
    /** validated: every step passed; revise: one failed. */
    state: "validated" | "revise" | "open";
    steps: StepReply[];
}

/** A step that is ticked by hand. */
export interface ValidationSetRequest {
    entry: string;
    step: "loads" | "pictures" | "strengths" | "prompts" | "speed";
    /** null takes the hand's word back. */
    mark?: "passed" | "failed" | "open" | null;
    note?: string;
}

/** How far merges are validated. */
export interface ValidationsReply {
    /** by id; nothing of one that is not there. */
    states: Record<string, "validated" | "revise" | "open">;
}

/** Names merges of the history. */
export interface ValidationsRequest {
    /** their ids. */
    entries: string[];
}

/** What a person thinks of a merge. */
export interface Verdict {
    /** by source. */
    preserved?: Record<string, "yes" | "partly" | "no">;
    /** there are new ones. */
    artefacts?: boolean | null;
    /** over prompts and seeds. */
    consistent?: boolean | null;
    /** beside the stack of tags. */
    against?: "" | "better" | "equal" | "worse";
    /** next: try again. */
    decision?: "" | "keep" | "discard" | "next";
}

/** The entry that has the verdict now. */
export interface VerdictReply {
    entry: string;
    /** ok, or revise where the merge did not pass. */
    status: string;
}

/** A verdict on an entry of the history, or on one column of a comparison. */
export interface VerdictRequest {
    entry?: string;
    comparison?: string;
    column?: number | null;
    verdict?: Verdict;
    notes?: string;
}

/** Block weights. */
export interface WeightsReply {
    weights: Record<string, number>;
}

/** What is set up in a window. */
export interface WindowKeepRequest {
    /** made by the page, up to 64 letters, digits, - and _. */
    window: string;
    /** shared by the windows of one browser. */
    browser: string;
    state: TabState;
}

/** What belongs to a window. */
export interface WindowReply {
    /** what was set up in it; null in a new window. */
    state: Record<string, any> | null;
    /** what another window of the browser used last: to be offered. */
    last: Record<string, any> | null;
    /** of this window: waiting, running, and ended ones unseen. */
    jobs: JobReply[];
}

/** Names a window of the page. */
export interface WindowRequest {
    /** made by the page, up to 64 letters, digits, - and _. */
    window: string;
    /** shared by the windows of one browser. */
    browser: string;
}

/** A word that a LoRA may answer to. */
export interface Word {
    text: string;
    origin: string;
    says: string;
    share: number | null;
    sure: boolean;
}

/** Likely trigger words, the surest first; nothing of a file that is gone or cannot be read. */
export interface WordsReply {
    /** by key. */
    found: Record<string, Word[]>;
}

/** Asks for the trigger words of LoRAs. */
export interface WordsRequest {
    /** as `loras` lists them. */
    keys?: string[];
}

/** Every operation that the page may ask for. */
export interface Operations {
    /** Start a merge of the history again; under its own name that gives the same bytes. */
    again: { request: AgainRequest; reply: JobReply };
    /** Return how far an analysis is, and its report where that has grown. */
    analysis: { request: AnalysisRequest; reply: AnalysisReply };
    /** Return an analysis as one page or as JSON. */
    analysis_export: { request: ExportRequest; reply: TextReply };
    /** Start an analysis of what is set up. */
    analyze: { request: AnalyzeRequest; reply: JobReply };
    /** Foresee size, rank and name of one LoRA that is resized, baked or converted. */
    anew: { request: AnewRequest; reply: AnewReply };
    /** Return what is set up with an advice carried out. */
    apply: { request: ApplyRequest; reply: SetupReply };
    /** Return {block: weight} of a list, preset or notation; R and U are drawn. */
    blocks: { request: BlocksRequest; reply: WeightsReply };
    /** Ask a job to stop. */
    cancel: { request: JobRequest; reply: JobReply };
    /** Return whether a merge's file is still there: renamed, replaced by another, in the trash, or gone. */
    card: { request: CardRequest; reply: CardReply };
    /** Return what the comparison's panel offers. */
    compare_choices: { request: Nothing; reply: CompareChoicesReply };
    /** Return in one sentence how many pictures are asked for. */
    compare_estimate: { request: EstimateRequest; reply: EstimateReply };
    /** Return a person's test prompts, after keeping new ones where some are given. */
    compare_prompts: { request: PromptsRequest; reply: PromptsReply };
    /** Return two merges side by side: what changed, and their reports block by block. */
    compare_recipes: { request: PairRequest; reply: CompareReply };
    /** Return a comparison that was made. */
    comparison: { request: ComparisonRequest; reply: ComparisonReply };
    /** Return the grid of a comparison. */
    comparison_picture: { request: ComparisonRequest; reply: PictureReply };
    /** What was merged, newest first (?search=). */
    history: { request: HistoryRequest; reply: HistoryReply };
    /** Return what changed from the merge `other` to the merge `entry`. */
    history_diff: { request: PairRequest; reply: LinesReply };
    /** Change an entry's verdict, notes or status. */
    history_update: { request: HistoryUpdateRequest; reply: Nothing };
    /** Return methods, families, presets, settings. */
    init: { request: Nothing; reply: InitReply };
    /** What is in one LoRA (?name=). */
    inspect: { request: LoraRequest; reply: InspectReply };
    /** How far a job is, and its result. */
    job: { request: JobRequest; reply: JobReply };
    /** Return what changed of the list of LoRAs. */
    library: { request: LibraryRequest; reply: LibraryReply };
    /** Return norm and share of energy per block of LoRAs. */
    look: { request: LookRequest; reply: LookReply };
    /** Every LoRA in the LoRA folders. */
    loras: { request: Nothing; reply: LorasReply };
    /** Start a merge; the answer has its job. */
    merge: { request: StateRequest; reply: JobReply };
    /** Every merge method with its knobs. */
    methods: { request: Nothing; reply: MethodsReply };
    /** Return the set-up that made a merged LoRA, a history entry or a recipe. */
    open: { request: OpenRequest; reply: OpenReply };
    /** Start the same recipe for the partner files of Wan 2.2, under the partner's name. */
    partners: { request: PartnersRequest; reply: JobReply };
    /** Return the set-up of the merge that a picture's infotext carries; null where it carries none. */
    picture_text: { request: PictureTextRequest; reply: SetupReply };
    /** What a merge would make. */
    plan: { request: StateRequest; reply: PlanReply };
    /** Delete one of the user's presets. */
    preset_delete: { request: NameRequest; reply: PresetsReply };
    /** Return preset files of neighbouring extensions. */
    preset_find: { request: Nothing; reply: PresetFindReply };
    /** Import a preset file of another tool, with a sentence for every line. */
    preset_import: { request: PresetImportRequest; reply: PresetImportReply };
    /** Rename one of the user's presets. */
    preset_rename: { request: PresetRenameRequest; reply: PresetsReply };
    /** Save a row's weights, and its element rules where it has some, under a name. */
    preset_save: { request: PresetSaveRequest; reply: PresetsReply };
    /** Block-weight presets. */
    presets: { request: Nothing; reply: PresetsReply };
    /** Make a picture the preview of the LoRA that was made of its merge. */
    preview_set: { request: PreviewSetRequest; reply: LoraNameReply };
    /** Return rows from a prompt or from a generated picture's text. */
    prompt: { request: PromptRequest; reply: PromptReply };
    /** Return the rows as prompt tags, and what tags cannot say. */
    prompt_write: { request: PromptWriteRequest; reply: PromptWriteReply };
    /** Move a saved recipe into the trash folder. */
    recipe_remove: { request: NameRequest; reply: NamesReply };
    /** Keep what is set up under a name. */
    recipe_save: { request: RecipeSaveRequest; reply: RecipeSaveReply };
    /** Names of saved recipes; with ?name= one of them, as plan and merge take it. */
    recipes: { request: RecipesRequest; reply: RecipesReply | OpenReply };
    /** Return what was merged as plain text and as Markdown, to be copied. */
    record: { request: EntryRequest; reply: RecordReply };
    /** Move a merge and its entry into trash folders; a file that is gone already is no error. */
    remove: { request: EntryRequest; reply: Nothing };
    /** Rename a merge and what lies beside it. */
    rename: { request: RenameRequest; reply: KeyReply };
    /** Return the report kept with a merge. */
    report: { request: ReportRequest; reply: TextReply };
    /** Start to make the report of a merge that has none, from its recipe and the sources of today. */
    report_make: { request: EntryRequest; reply: JobReply };
    /** Move a LoRA and what lay beside it from the trash to its place, and its entry into the history. */
    restore: { request: RestoreRequest; reply: KeyReply };
    /** Start a sweep; its result has `made`, a merge's result for every file, and `failed`, sentences. */
    sweep: { request: SweepRequest; reply: JobReply };
    /** Say what a sweep would write: names, how many, how large. */
    sweep_plan: { request: SweepRequest; reply: SweepPlan };
    /** Return ten test prompts, extremes among them. */
    test_prompts: { request: Nothing; reply: TestPromptsReply };
    /** Return the LoRAs that were deleted, or replaced by a merge, and can go back. */
    trash: { request: Nothing; reply: TrashReply };
    /** Return the checklist of a merge, filled in as far as anything is known. */
    validation: { request: EntryRequest; reply: ValidationReply };
    /** Tick a step of the checklist by hand, or take that back; a merge that failed one is to be revised. */
    validation_set: { request: ValidationSetRequest; reply: ValidationReply };
    /** Return how far merges are validated; those that cannot be looked at are open. */
    validations: { request: ValidationsRequest; reply: ValidationsReply };
    /** Write down what a person thinks of a merge. */
    verdict: { request: VerdictRequest; reply: VerdictReply };
    /** Start to hold a merged LoRA against its recipe. */
    verify: { request: LoraRequest; reply: JobReply };
    /** Keep what is set up in a window; a picture that was dropped for the card is not kept. */
    window_keep: { request: WindowKeepRequest; reply: Nothing };
    /** Return what was set up in a window and the jobs it asked for, after a reload as in a new one. */
    window_open: { request: WindowRequest; reply: WindowReply };
    /** Return the likely trigger words of LoRAs, each with where it comes from. */
    words: { request: WordsRequest; reply: WordsReply };
}
