package settings

import "strings"

// Shown is a setting with its value and origin, for display.
type Shown struct {
	Name   string `json:"name" yaml:"name"`
	Value  string `json:"value" yaml:"value"` // in the form that the setting accepts, or masked if it is a secret
	Origin string `json:"origin" yaml:"origin"`
}

// mask is shown instead of a secret.
const mask = "(secret)"

// All returns every setting with its value and origin, in the order of the table.
func (s *Settings) All() []Shown {
	list := make([]Shown, 0, len(table))
	for i := range table {
		row := &table[i]
		v := Shown{Name: row.name, Value: row.show(s), Origin: defaultOrigin}
		if g, ok := s.Given[row.name]; ok {
			v.Origin = g.Origin
		} else if row.def == "" && v.Value != "" {
			v.Origin = "derived from other settings"
		}
		if row.secret && v.Value != "" && v.Value != row.def {
			v.Value = mask
		}
		list = append(list, v)
	}
	return list
}

// ForClients reads only the settings that say where and how clients and probes are
// served. It is for commands that ask the node on the same machine: a health check
// must not fail because of a setting that it does not use.
func ForClients(environ []string) (*Settings, error) {
	layers, _ := Layers(nil, environ)
	var ignored problemList // the node reports them when it starts
	for i := range layers {
		layers[i], _ = layers[i].translate(&ignored)
		for name := range layers[i] {
			if name != "port" && name != "listen-client" && name != "listen-metrics" && !strings.HasPrefix(name, "tls-") {
				delete(layers[i], name)
			}
		}
	}
	return Resolve(layers...)
}
