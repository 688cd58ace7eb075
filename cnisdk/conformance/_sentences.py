"""Sentences of the specification that cases hold plugins to, word for word.

Cases take their level from the words here: a *must* is what a sentence with "must" or "required" says, and no more.
"""

from __future__ import annotations

from .judgement import Sentence

NETWORK_NAME = Sentence(
    '§1 "Configuration format"',
    "name (string): Network name. [...] Must start with an alphanumeric character, optionally followed by any "
    "combination of one or more alphanumeric characters, underscore, dot (.) or hyphen (-).",
)
OTHER_KEYS = Sentence(
    '§1 "Plugin configuration objects"',
    "Plugins may define additional fields that they accept and may generate an error if called with unknown fields.",
)
ARGS = Sentence(
    '§1 "Network Configuration" of 0.4.0',
    "The exception to this is the args field may be used to pass arbitrary data which should be ignored by plugins if "
    "not understood.",
)

CONTAINER_ID = Sentence(
    '§2 "Parameters"',
    "CNI_CONTAINERID: Container ID. [...] Must not be empty. Must start with an alphanumeric character, optionally "
    "followed by any combination of one or more alphanumeric characters, underscore (), dot (.) or hyphen (-).",
)
IFNAME = Sentence(
    '§2 "Parameters" of 0.4.0',
    'Name of the interface inside the container. [...] must not be empty, must not be "." or "..", must be less than '
    "16 characters and must not contain / or : or any whitespace characters.",
)
STDIN = Sentence(
    '§2 "Overview"',
    "The runtime passes parameters to the plugin via environment variables and configuration. It supplies "
    "configuration via stdin.",
)
STREAMED = Sentence(
    '§2 "Parameters" of 0.4.0', "Network configuration in JSON format must be streamed to the plugin through stdin."
)
STDOUT = Sentence(
    '§2 "Overview"',
    "The plugin returns a result on stdout on success, or an error on stderr if the operation fails.",
)
EXIT_STATUS = Sentence('§2 "Errors"', "A plugin must exit with a return code of 0 on success, and non-zero on failure.")

ADD_CREATES = Sentence(
    '§2 "ADD"',
    "A CNI plugin, upon receiving an ADD command, should either create the interface defined by CNI_IFNAME inside the "
    "container at CNI_NETNS, or adjust the configuration of the interface defined by CNI_IFNAME inside the container "
    "at CNI_NETNS.",
)
ADD_TAKES_EXISTING = Sentence(
    '§2 "ADD"',
    "If an interface of the requested name already exists in the container, the CNI plugin MUST return with an error.",
)
ADD_HANDLES_PREV_RESULT = Sentence(
    '§2 "ADD"',
    "If the plugin was supplied a prevResult as part of its input configuration, it MUST handle prevResult by either "
    "passing it through, or modifying it appropriately.",
)

DEL_UNDOES = Sentence(
    '§2 "DEL"',
    "A CNI plugin, upon receiving a DEL command, should either delete the interface defined by CNI_IFNAME inside the "
    "container at CNI_NETNS, or undo any modifications applied in the plugin's ADD functionality",
)
DEL_AGAIN = Sentence(
    '§2 "DEL"',
    "Plugins MUST accept multiple DEL calls for the same (CNI_CONTAINERID, CNI_IFNAME) pair, and return success if the "
    "interface in question, or any modifications added, are missing.",
)
DEL_WITH_LESS = Sentence(
    '§2 "DEL"',
    "Plugins should generally complete a DEL action without error even if some resources are missing. [...] For "
    "another example, the bridge plugin should delegate the DEL action to the IPAM plugin and clean up its own "
    "resources even if the container network namespace and/or container network interface no longer exist.",
)
DEL_WITHOUT = Sentence(
    '§2 "DEL" of 0.4.0',
    "When CNI_NETNS and/or prevResult are not provided, the plugin should clean up as many resources as possible (e.g. "
    "releasing IPAM allocations) and return a successful response.",
)
DEL_RELEASES = Sentence(
    '§2 "DEL" of 0.4.0',
    "A delete operation should release all resources held by the supplied containerid in the configured network.",
)
PRIMARY_KEY = Sentence(
    '§2 "General considerations" of 0.4.0',
    "Plugins that store state should do so using a primary key of (network name, CNI_CONTAINERID, CNI_IFNAME).",
)

CHECK_AFTER_ADD = Sentence(
    '§2 "CHECK"',
    "The plugin must handle CHECK being called immediately after an ADD, and therefore should allow a reasonable "
    "convergence delay for any asynchronous resources.",
)
CHECK_PROBES = Sentence('§2 "CHECK"', "CHECK is a way for a runtime to probe the status of an existing container.")
CHECK_OF_THE_RESULT = Sentence(
    '§2 "CHECK"',
    "The plugin should return an error if a resource included in the CNI Result type (interface, address or route) was "
    "created by the plugin, and is listed in prevResult, but is missing or in an invalid state.",
)
CHECK_BESIDE_THE_RESULT = Sentence(
    '§2 "CHECK"',
    "The plugin should return an error if other resources not tracked in the Result type such as the following are "
    "missing or are in an invalid state: Firewall rules Traffic shaping controls IP reservations",
)
CHECK_UNREACHABLE = Sentence(
    '§2 "CHECK"',
    "The plugin should return an error if it is aware of a condition where the container is generally unreachable.",
)
CHECK_CONSULTS = Sentence(
    '§2 "CHECK"',
    "The plugin must consult the prevResult to determine the expected interfaces and addresses. [...] The plugin "
    "should return an error if a resource included in the CNI Result type (interface, address or route) was created "
    "by the plugin, and is listed in prevResult, but is missing or in an invalid state.",
)

VERSION_NEEDS = Sentence('§2 "VERSION"', "Required environment parameters: CNI_COMMAND")

GC_IS_FOR = Sentence(
    '§2 "GC"',
    "The GC command provides a way for runtimes to specify the expected set of attachments to a network. The network "
    "plugin may then remove any resources related to attachments that do not exist in this set.",
)
GC_DROPS = Sentence(
    '§2 "GC"',
    "A plugin SHOULD remove as many stale resources as possible. For example, a plugin should remove any IPAM "
    "reservations associated with attachments not in the provided list.",
)
GC_FORWARDS = Sentence(
    '§2 "GC"',
    "Plugins MUST, additionally, forward any GC calls to delegated plugins they are configured to use",
)
STATUS_READY = Sentence(
    '§2 "STATUS"',
    "A plugin must exit with a zero (success) return code if the plugin is ready to service ADD requests.",
)
STATUS_EXHAUSTED = Sentence(
    '§2 "STATUS"',
    "Likewise, if a plugin has a limited number of resources (e.g. IP addresses, hardware queues), it should return an "
    "error if those resources are exhausted and no new ADD requests can be serviced.",
)
STATUS_DELEGATES = Sentence(
    '§2 "STATUS"',
    "If a plugin relies on a delegated plugin (e.g. IPAM) to service ADD requests, it must also execute a STATUS "
    "request to that plugin when it receives a STATUS request for itself.",
)
STATUS_OF_THE_DELEGATE = Sentence(
    '§2 "STATUS"', "If the delegated plugin return an error result, the executing plugin should return an error result."
)

CONCURRENT = Sentence(
    '§3 "Lifecycle & Ordering"',
    "Plugins must handle being executed concurrently across different containers. If necessary, they must implement "
    "locking on shared resources (e.g. IPAM databases).",
)
NOT_PARALLEL = Sentence(
    '§3 "Lifecycle & Ordering"',
    "The container runtime must not invoke parallel operations for the same container",
)
SAME_CONFIGURATION = Sentence(
    '§3 "Lifecycle & Ordering"', "The network configuration should not change between add and delete."
)
DELETE_AFTER_FAILED_ADD = Sentence(
    '§3 "Lifecycle & Ordering"', "A delete must still be executed even if the add fails."
)
CAPABILITIES = Sentence(
    '§3 "Deriving runtimeConfig"',
    "Capability arguments need to be declared explicitly in configuration. The runtime, thus, can determine if a given "
    "network configuration supports a specific capability.",
)

IPAM_DETERMINES = Sentence(
    '§4 "Plugin Delegation"',
    "The IPAM plugin must determine the interface IP/subnet, Gateway and Routes and return this information to the "
    '"main" plugin to apply.',
)
SUCCESS_OF_A_DELEGATE = Sentence(
    '§4 "Delegated Plugin protocol", §4 "Delegated plugin execution procedure"',
    "Success is indicated by a zero return code and a Success result type output to stdout. [...] If any of the "
    "delegated plugins return error, error should be returned by the upper plugin.",
)
_DELEGATING = "When a plugin executes a delegated plugin, it should: [...] "
DELEGATE_LOOKED_UP = Sentence(
    '§4 "Delegated plugin execution procedure"',
    f"{_DELEGATING}Look up the plugin binary by searching the directories provided in CNI_PATH environment variable.",
)
DELEGATE_CONFIGURED = Sentence(
    '§4 "Delegated plugin execution procedure"',
    f"{_DELEGATING}Execute that plugin with the same environment and configuration that it received.",
)
DELEGATE_STDERR = Sentence(
    '§4 "Delegated plugin execution procedure"',
    f"{_DELEGATING}Ensure that the delegated plugin's stderr is output to the calling plugin's stderr.",
)
DELEGATE_EXECUTED = Sentence(
    '§4 "Delegated plugin execution procedure"',
    "If a plugin is executed with CNI_COMMAND=CHECK, DEL, or GC, it must also execute any delegated plugins.",
)
DELEGATE_FAILS = Sentence(
    '§4 "Delegated plugin execution procedure"',
    "If any of the delegated plugins return error, error should be returned by the upper plugin.",
)
DELEGATE_FAILS_TO_ADD = Sentence(
    '§4 "Delegated plugin execution procedure"',
    'If, on ADD, a delegated plugin fails, the "upper" plugin should execute again with DEL before returning failure.',
)

SUCCESS = Sentence(
    '§5 "ADD Success"', "Plugins must output a JSON object with the following keys upon a successful ADD operation:"
)
SUCCESS_VERSION = Sentence(
    '§2 "Result" of 0.4.0',
    "cniVersion specifies a Semantic Version 2.0 of CNI specification used by the plugin. A plugin may support "
    "multiple CNI spec versions (as it reports via the VERSION command), here the cniVersion returned by the plugin in "
    "the result must be consistent with the cniVersion specified in Network Configuration.",
)
SUCCESS_INTERFACES = Sentence(
    SUCCESS.section,
    f"{SUCCESS.words} [...] interfaces: An array of all interfaces created by the attachment, including any host-level "
    "interfaces: name (string): The name of the interface. mac (string): The hardware address of the interface (if "
    "applicable).",
)
SUCCESS_IPS = Sentence(
    SUCCESS.section,
    f"{SUCCESS.words} [...] ips: IPs assigned by this attachment. Plugins may include IPs assigned external to the "
    "container. [...] routes: Routes created by this attachment:",
)
SUCCESS_SANDBOX = Sentence(
    SUCCESS.section,
    "sandbox (string): The isolation domain reference (e.g. path to network namespace) for the interface, or empty if "
    "on the host. For interfaces created inside the container, this should be the value passed via CNI_NETNS.",
)
PREV_RESULT = Sentence(
    SUCCESS.section,
    "Plugins provided a prevResult key as part of their request configuration must output it as their result, with any "
    "possible modifications made by that plugin included.",
)
ABBREVIATED = Sentence(
    '§5 "Delegated plugins (IPAM)"',
    "Delegated IPAM plugins must return an abbreviated Success object. Specifically, it is missing the interfaces "
    "array, as well as the interface entry in ips.",
)
ERROR = Sentence(
    '§5 "Error"', "Plugins should output a JSON object with the following keys if they encounter an error:"
)
ERROR_VERSION = Sentence(ERROR.section, f'{ERROR.words} cniVersion: The protocol version in use - "1.1.0"')
ERROR_KEYS = Sentence(
    ERROR.section,
    f"{ERROR.words} [...] code: A numeric error code, see below for reserved codes. msg: A short message "
    "characterizing the error. details: A longer message describing the error.",
)
ONE_DOCUMENT = Sentence(f"{SUCCESS.section}, {ERROR.section}", f"{SUCCESS.words} [...] {ERROR.words}")
ERROR_CODES = Sentence(
    ERROR.section,
    f"{ERROR.words} [...] code: A numeric error code, see below for reserved codes. [...] Error codes 0-99 are "
    "reserved for well-known errors. Values of 100+ can be freely used for plugin specific errors.",
)


def error_code(number: int) -> Sentence:
    """Say that a plugin should use a code of the table for what the table says."""
    words = f"{ERROR.words} [...] code: A numeric error code, see below for reserved codes. [...] {CODES[number]}"
    return Sentence(ERROR.section, words)


CODES = {
    1: "1 Incompatible CNI version",
    2: "2 Unsupported field in network configuration. The error message must contain the key and value of the "
    "unsupported field.",
    3: "3 Container unknown or does not exist. This error implies the runtime does not need to perform any container "
    "network cleanup (for example, calling the DEL action on the container).",
    4: "4 Invalid necessary environment variables, like CNI_COMMAND, CNI_CONTAINERID, etc. The error message must "
    "contain the names of invalid variables.",
    5: "5 I/O failure. For example, failed to read network config bytes from stdin.",
    6: "6 Failed to decode content. For example, failed to unmarshal network config from bytes or failed to decode "
    "version info from string.",
    7: "7 Invalid network config. If some validations on network configs do not pass, this error will be raised.",
    11: "11 Try again later. If the plugin detects some transient condition that should clear up, it can use this code "
    "to notify the runtime it should re-try the operation later.",
}
"""Rows of the table of codes."""
VERSION_RESULT = Sentence(
    '§5 "Version"',
    "Plugins must output a JSON object with the following keys upon a VERSION operation: cniVersion: The value of "
    "cniVersion specified on input supportedVersions: A list of supported specification versions",
)
