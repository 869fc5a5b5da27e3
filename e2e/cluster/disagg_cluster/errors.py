"""What the embedded cluster can refuse or fail at. Each message is shown as it stands, and says what to do.

ClusterError
  MachineError   the machine lacks something: root, disk, a port, Go, a cgroup hierarchy
  BuildError     a binary or an image did not build
  ComponentError a process of the cluster ended or did not become ready
"""


class ClusterError(Exception):
    pass


class MachineError(ClusterError):
    pass


class BuildError(ClusterError):
    pass


class ComponentError(ClusterError):
    pass
