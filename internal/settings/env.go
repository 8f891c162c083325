package settings

import (
	"maps"
	"regexp"
	"slices"
	"strings"
)

const (
	envPrefix  = "KVD_"
	fileSuffix = "_FILE" // of a variable that names a file holding a secret
)

// commandVariables belong to the commands for users of a cluster, and to programs
// that these run. A shell may export them for both, so a node ignores them.
var commandVariables = []string{
	"KVD_ENDPOINTS", "KVD_CACERT", "KVD_CLIENT_CERT", "KVD_CLIENT_KEY", "KVD_TIMEOUT", "KVD_OUTPUT",
	"KVD_KEY", "KVD_KEY_BASE64", "KVD_REVISION", "KVD_EVENT", "KVD_LOCK_TOKEN",
}

// envName returns the environment variable of a setting.
func envName(name string) string {
	return envPrefix + strings.ToUpper(strings.ReplaceAll(name, "-", "_"))
}

// EnvLayer returns the settings in the environment, given as "NAME=value". An empty
// variable counts as not set: compose files and shells make those by accident. A
// variable with kvd's prefix that names no setting is an error.
func EnvLayer(environ []string) (Layer, error) {
	var problems problemList
	layer := make(Layer)
	names := make(map[string]string, len(table))
	for _, name := range allNames() {
		names[envName(name)] = name
	}
	given := variables(environ)
	// Sorted, so that problems are always reported in the same order.
	for _, variable := range slices.Sorted(maps.Keys(given)) {
		origin := "environment variable " + variable
		if name, ok := names[variable]; ok {
			layer[name] = Given{Text: given[variable], Origin: origin}
			continue
		}
		// Settings whose own name ends in -file were found above: KVD_TLS_KEY_FILE names
		// a certificate's key and is not the file form of a setting tls-key.
		owner, ok := strings.CutSuffix(variable, fileSuffix)
		name := names[owner]
		switch {
		case !ok || !isSecret(name):
			problems.add("%s is not a setting%s", origin, nearest(settingLike(variable), envName))
		case given[owner] != "":
			problems.add("%s and environment variable %s both set --%s; remove one of them", origin, owner, name)
		default:
			secret, err := readSecret(given[variable])
			if err != nil {
				problems.add("%s: %w", origin, err)
			}
			layer[name] = Given{Text: secret, Origin: origin}
		}
	}
	return layer, problems.join()
}

// variables returns the variables of a node that are not empty.
func variables(environ []string) map[string]string {
	given := make(map[string]string)
	for _, pair := range environ {
		name, text, _ := strings.Cut(pair, "=")
		if strings.HasPrefix(name, envPrefix) && text != "" && !isServiceLink(name, text) && !slices.Contains(commandVariables, name) {
			given[name] = text
		}
	}
	return given
}

// isSecret reports whether the name, or the setting that it is an alias of, is a
// secret.
func isSecret(name string) bool {
	row := settingNamed(canonical(name))
	return row != nil && row.secret
}

// settingLike turns the name of a variable into the form of a setting's name.
func settingLike(variable string) string {
	return strings.ToLower(strings.ReplaceAll(strings.TrimPrefix(variable, envPrefix), "_", "-"))
}

// Kubernetes describes each service in the environment of every pod in its
// namespace. With a service named kvd, pods get KVD_PORT=tcp://10.0.0.1:12380 and
// KVD_SERVICE_HOST, which are not settings.
var (
	serviceLinkName  = regexp.MustCompile(`_SERVICE_HOST$|_SERVICE_PORT(_[A-Z0-9_]+)?$|_PORT_[0-9]+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?$`)
	serviceLinkValue = regexp.MustCompile(`^(tcp|udp|sctp)://`)
)

func isServiceLink(name, text string) bool {
	return serviceLinkName.MatchString(name) || strings.HasSuffix(name, "_PORT") && serviceLinkValue.MatchString(text)
}
