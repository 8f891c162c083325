package settings

import (
	"maps"
	"regexp"
	"slices"
	"strings"
)

const (
	envPrefix  = "KVD_"
	fileSuffix = "_FILE" // of a variable that names a file with a secret
)

// envName is the environment variable of a setting.
func envName(name string) string {
	return envPrefix + strings.ToUpper(strings.ReplaceAll(name, "-", "_"))
}

// EnvLayer has the settings given in the environment ("NAME=value" each). An
// empty variable is as good as none; one that names no setting is an error.
func EnvLayer(environ []string) (Layer, error) {
	var problems problemList
	layer := make(Layer)
	names := make(map[string]string, len(table))
	for _, name := range allNames() {
		names[envName(name)] = name
	}
	given := variables(environ)
	for _, variable := range slices.Sorted(maps.Keys(given)) {
		origin := "environment variable " + variable
		if name, ok := names[variable]; ok {
			layer[name] = Given{Text: given[variable], Origin: origin}
			continue
		}
		owner, ok := strings.CutSuffix(variable, fileSuffix)
		name := names[owner]
		switch {
		case !ok || !isSecret(name):
			problems.add("%s names no setting%s", origin, nearest(settingLike(variable), envName))
		case given[owner] != "":
			problems.add("%s and environment variable %s both give --%s; leave one out", origin, owner, name)
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

// variables has those of kvd that are not empty.
func variables(environ []string) map[string]string {
	given := make(map[string]string)
	for _, pair := range environ {
		name, text, _ := strings.Cut(pair, "=")
		if strings.HasPrefix(name, envPrefix) && text != "" && !isServiceLink(name, text) {
			given[name] = text
		}
	}
	return given
}

// isSecret reports whether the setting, by any of its names, is a secret.
func isSecret(name string) bool {
	row := settingNamed(canonical(name))
	return row != nil && row.secret
}

// settingLike turns a variable's name into the form of a setting's.
func settingLike(variable string) string {
	return strings.ToLower(strings.ReplaceAll(strings.TrimPrefix(variable, envPrefix), "_", "-"))
}

// Kubernetes describes each service in the environment of every pod of its
// namespace. A service called kvd must not be taken for settings of kvd.
var (
	serviceLinkName  = regexp.MustCompile(`_SERVICE_HOST$|_SERVICE_PORT(_[A-Z0-9_]+)?$|_PORT_[0-9]+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?$`)
	serviceLinkValue = regexp.MustCompile(`^(tcp|udp|sctp)://`)
)

func isServiceLink(name, text string) bool {
	return serviceLinkName.MatchString(name) || strings.HasSuffix(name, "_PORT") && serviceLinkValue.MatchString(text)
}
