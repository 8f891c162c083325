package settings

import "strings"

// Shown is a setting as it is, for people to look at.
type Shown struct {
	Name   string `json:"name" yaml:"name"`
	Value  string `json:"value" yaml:"value"` // in the form that the setting takes; masked where it is a secret
	Origin string `json:"origin" yaml:"origin"`
}

// mask stands for a secret.
const mask = "(secret)"

// All returns every setting with its value and where that comes from, in the
// order of the help.
func (s *Settings) All() []Shown {
	list := make([]Shown, 0, len(table))
	for i := range table {
		row := &table[i]
		v := Shown{Name: row.name, Value: row.show(s), Origin: "default"}
		if g, ok := s.Given[row.name]; ok {
			v.Origin = g.Origin
		} else if row.def == "" && v.Value != "" {
			v.Origin = "follows from other settings"
		}
		if row.secret && v.Value != "" && v.Value != row.def {
			v.Value = mask
		}
		list = append(list, v)
	}
	return list
}

// ForClients reads only what says where and how clients and probes are served, for
// commands that ask a node on the same machine. What is wrong with other
// settings is the node's business.
func ForClients(environ []string) (*Settings, error) {
	layers, _ := Layers(nil, environ)
	var ignored problemList
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
