package settings

import (
	"maps"
	"regexp"
	"slices"
	"strings"
)

// EnvLayer has the settings given in the environment ("NAME=value" each). An
// empty variable is as good as none; one that names no setting is an error.
func EnvLayer(environ []string) (Layer, error) {
	layer := make(Layer)
	unknown := make(map[string]bool)
	for _, pair := range environ {
		name, text, _ := strings.Cut(pair, "=")
		if !strings.HasPrefix(name, envPrefix) || text == "" || isServiceLink(name, text) {
			continue
		}
		row := settingOfEnv(name)
		if row == nil {
			unknown[name] = true
			continue
		}
		layer[row.name] = Given{Text: text, Origin: "environment variable " + name}
	}
	var problems problemList
	for _, name := range slices.Sorted(maps.Keys(unknown)) {
		problems.add("environment variable %s names no setting%s", name, similar(name))
	}
	return layer, problems.join()
}

func settingOfEnv(name string) *setting {
	i := slices.IndexFunc(table, func(s setting) bool { return s.env() == name })
	if i < 0 {
		return nil
	}
	return &table[i]
}

// similar proposes the variable that was probably meant.
func similar(name string) string {
	for i := range table {
		env := table[i].env()
		if strings.HasPrefix(env, name) || strings.HasPrefix(name, env) ||
			strings.ReplaceAll(env, "_", "") == strings.ReplaceAll(strings.ToUpper(name), "_", "") {
			return "; did you mean " + env + "?"
		}
	}
	return "; see kvd --help for all of them"
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
