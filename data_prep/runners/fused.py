"""Cuts a Beam pipeline into fused stages, and runs one of them on some elements: what this package's runners share.

Beam's own translations fuse the transforms between two shuffles and lift the combiners (partial sums before the
shuffle), and Beam's own worker code runs them; a runner only carries encoded elements from stage to stage.

A stage reads one buffer and writes to others. What crosses a buffer is (key, value), both encoded: grouped by key where
the pipeline says so, else one element with an empty key.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from apache_beam.coders import coder_impl
from apache_beam.metrics.metric import MetricResults
from apache_beam.pipeline import Pipeline
from apache_beam.portability import common_urns
from apache_beam.portability.api import beam_fn_api_pb2, beam_runner_api_pb2
from apache_beam.runners import pipeline_context
from apache_beam.runners.pipeline_utils import group_by_key_input_visitor
from apache_beam.runners.portability.fn_api_runner import translations
from apache_beam.runners.portability.fn_api_runner.execution import ENCODED_IMPULSE_VALUE
from apache_beam.runners.runner import PipelineResult, PipelineState
from apache_beam.runners.worker import bundle_processor, data_plane
from apache_beam.transforms import environments, window

GROUP_BY_KEY = common_urns.primitives.GROUP_BY_KEY.urn
FLATTEN = common_urns.primitives.FLATTEN.urn
RESHUFFLE = common_urns.composites.RESHUFFLE.urn
GLOBAL_WINDOWS = common_urns.global_windows.urn
READ, WRITE = bundle_processor.DATA_INPUT_URN, bundle_processor.DATA_OUTPUT_URN
BUNDLE = "bundle"
MAX_READY = 4  # stages that a process keeps ready: as many as one level of a pipeline here has

Emit = Callable[["Port", bytes, bytes], None]


@dataclass(frozen=True)
class Port:
    """Where a stage reads or writes: the transform that does, the buffer's name, and the coder of what crosses."""

    transform: str
    buffer: str
    grouped: bool
    coder: str


@dataclass(frozen=True)
class FusedStage:
    """Transforms between two shuffles, as Beam's `ProcessBundleDescriptor`; no `source` where a pipeline starts."""

    name: str
    descriptor: bytes
    read: str  # the transform that reads
    source: Port | None
    outputs: tuple[Port, ...]


def fuse(pipeline: Pipeline) -> list[FusedStage]:
    """The stages of a pipeline, each after those whose buffers it reads.

    Raises NotImplementedError for side inputs, state, timers and windows, which no pipeline here uses.
    """
    pipeline.visit(group_by_key_input_visitor(True))
    proto = pipeline.to_runner_api(
        default_environment=environments.EmbeddedPythonEnvironment.default()
    )
    context, stages = translations.create_and_optimize_stages(
        proto,
        phases=[
            _refuse_the_unknown,
            translations.lift_combiners,
            translations.expand_gbk,
            _cut_reshuffles,
            translations.sink_flattens,
            translations.greedily_fuse,
            translations.impulse_to_input,
            translations.sort_stages,
            translations.populate_data_channel_coders,
        ],
        known_runner_urns=frozenset([FLATTEN, GROUP_BY_KEY, RESHUFFLE]),
    )
    fused = [_fused(stage, context) for stage in stages]
    sources = [stage.source.buffer for stage in fused if stage.source is not None]
    if len(sources) != len(set(sources)):
        raise NotImplementedError("a buffer that two stages read")
    return fused


class StageWorker:
    """One fused stage made ready: its functions are unpickled and set up once, then run on any number of bundles."""

    def __init__(self, stage: FusedStage) -> None:
        descriptor = beam_fn_api_pb2.ProcessBundleDescriptor.FromString(stage.descriptor)
        known = pipeline_context.PipelineContext(descriptor).coders
        self._channel = _Channel()
        factory = data_plane.InMemoryDataChannelFactory(self._channel)
        self._processor = bundle_processor.BundleProcessor(
            frozenset(),
            descriptor,
            None,  # type: ignore[arg-type]  # nothing here has state
            factory,
        )
        self._read = stage.read
        self._source = stage.source
        self._ports = {port.transform: port for port in stage.outputs}
        ports = [*stage.outputs, *([stage.source] if stage.source else [])]
        self._coders: dict[str, Any] = {port.coder: known[port.coder] for port in ports}

    def run(self, elements: Iterable[tuple[bytes, Iterable[bytes]]], emit: Emit) -> None:
        """Runs the stage on (key, values), which are read one after the other; `emit` gets what it writes."""

        def write(transform: str, data: bytes) -> None:
            port = self._ports[transform]
            for key, value in self._split(port, data):
                emit(port, key, value)

        encoded = (self._encode(key, values) for key, values in elements)
        self._channel.open(self._read, encoded, write)
        self._processor.process_bundle(BUNDLE)
        self._processor.reset()

    def start(self, emit: Emit) -> None:
        """Runs a stage that reads nothing."""
        self.run([(b"", [ENCODED_IMPULSE_VALUE])], emit)

    def close(self) -> None:
        self._processor.shutdown()

    def _encode(self, key: bytes, values: Iterable[bytes]) -> bytes:
        if self._source is None or not self._source.grouped:
            return b"".join(values)
        coder = self._coders[self._source.coder]
        pair = coder.wrapped_value_coder
        decode = pair.value_coder().value_coder().get_impl().decode
        element = (pair.key_coder().get_impl().decode(key), [decode(value) for value in values])
        return coder.get_impl().encode_nested(window.GlobalWindows.windowed_value(element))

    def _split(self, port: Port, data: bytes) -> Iterator[tuple[bytes, bytes]]:
        coder = self._coders[port.coder]
        implementation = coder.get_impl()
        stream = coder_impl.create_InputStream(data)
        if port.grouped:
            pair = coder.wrapped_value_coder
            encode_key = pair.key_coder().get_impl().encode
            encode_value = pair.value_coder().get_impl().encode
        while stream.size() > 0:
            element = implementation.decode_from_stream(stream, True)
            if port.grouped:
                key, value = element.value
                yield encode_key(key), encode_value(value)
            else:
                yield b"", implementation.encode_nested(element)


class Result(PipelineResult):
    """Of a pipeline that has run. `shuffled` are the bytes that went from stage to stage grouped by a key."""

    def __init__(self, shuffled: int) -> None:
        super().__init__(PipelineState.DONE)
        self.shuffled = shuffled

    def wait_until_finish(self, duration: int | None = None) -> str:
        return PipelineState.DONE

    def metrics(self) -> MetricResults:
        raise NotImplementedError


def ready(run: str, stage: FusedStage) -> StageWorker:
    """The stage made ready in this process: once for all that it gets of the same run of a pipeline."""
    key = (run, stage.name)
    if key not in _READY:
        while len(_READY) >= MAX_READY:
            _READY.popitem(last=False)[1].close()
        _READY[key] = StageWorker(stage)
    return _READY[key]


_READY: OrderedDict[tuple[str, str], StageWorker] = OrderedDict()


class _Channel(data_plane.DataChannel):
    """Hands a bundle its elements one by one, and takes what it writes, a few megabytes at a time."""

    def open(
        self, transform: str, elements: Iterable[bytes], write: Callable[[str, bytes], None]
    ) -> None:
        self._transform, self._elements, self._write = transform, elements, write

    def input_elements(
        self, instruction_id: str, expected_inputs: Any, abort_callback: Any = None
    ) -> Iterator[beam_fn_api_pb2.Elements.Data]:
        for data in self._elements:
            yield beam_fn_api_pb2.Elements.Data(
                instruction_id=instruction_id, transform_id=self._transform, data=data
            )

    def output_stream(
        self, instruction_id: str, transform_id: str
    ) -> data_plane.ClosableOutputStream:
        def write(data: bytes) -> None:
            self._write(transform_id, data)

        return data_plane.ClosableOutputStream.create(write, write, 0)

    def output_timer_stream(self, *_: Any) -> Any:
        raise NotImplementedError("timers")

    def close(self) -> None:
        pass


def _refuse_the_unknown(
    stages: Sequence[translations.Stage], context: translations.TransformContext
) -> Iterator[translations.Stage]:
    strategies = context.components.windowing_strategies.values()
    if any(strategy.window_fn.urn != GLOBAL_WINDOWS for strategy in strategies):
        raise NotImplementedError("windows")
    for stage in stages:
        for transform in stage.transforms:
            if transform.spec.urn in translations.PAR_DO_URNS:
                payload = beam_runner_api_pb2.ParDoPayload.FromString(transform.spec.payload)
                if payload.side_inputs or stage.is_stateful() or payload.restriction_coder_id:
                    raise NotImplementedError(f"side inputs, state or splits: {stage.name}")
        yield stage


def _cut_reshuffles(
    stages: Sequence[translations.Stage], context: translations.TransformContext
) -> Iterator[translations.Stage]:
    """Makes each Reshuffle a write and a read of a buffer, without Beam's random keys."""
    for stage in stages:
        transform = stage.transforms[0]
        if transform.spec.urn != RESHUFFLE:
            yield stage
            continue
        (source,), (target,) = transform.inputs.values(), transform.outputs.values()
        known = context.components.pcollections
        known[target].coder_id = known[source].coder_id
        spec = {"payload": translations.create_buffer_id(transform.unique_name)}
        name = transform.unique_name
        write = beam_runner_api_pb2.PTransform(
            unique_name=f"{name}/Write",
            inputs=transform.inputs,
            spec=beam_runner_api_pb2.FunctionSpec(urn=WRITE, **spec),
        )
        read = beam_runner_api_pb2.PTransform(
            unique_name=f"{name}/Read",
            outputs=transform.outputs,
            spec=beam_runner_api_pb2.FunctionSpec(urn=READ, **spec),
        )
        first = translations.Stage(write.unique_name, [write], frozenset(), stage.must_follow)
        yield first
        follows = translations.union(frozenset([first]), stage.must_follow)
        yield translations.Stage(read.unique_name, [read], frozenset(), follows)


def _fused(stage: translations.Stage, context: translations.TransformContext) -> FusedStage:
    reads: list[tuple[str, Port | None]] = []
    writes: list[Port] = []
    for transform in stage.transforms:
        if transform.spec.urn not in (READ, WRITE):
            continue
        buffer = transform.spec.payload
        ends = transform.outputs if transform.spec.urn == READ else transform.inputs
        coder = context.data_channel_coders[next(iter(ends.values()))]
        if transform.spec.urn == READ and buffer == translations.IMPULSE_BUFFER:
            reads.append((transform.unique_name, None))
        else:
            kind, name = translations.split_buffer_id(buffer)
            safe = context.safe_coders.get(coder, coder)
            port = Port(transform.unique_name, name, kind == "group", safe)
            if transform.spec.urn == READ:
                reads.append((transform.unique_name, port))
            else:
                writes.append(port)
        port_of_beam = beam_fn_api_pb2.RemoteGrpcPort(coder_id=coder)
        transform.spec.payload = port_of_beam.SerializeToString()
    if len(reads) != 1:
        raise NotImplementedError(f"a stage of {len(reads)} inputs: {stage.name}")
    components = context.components
    descriptor = beam_fn_api_pb2.ProcessBundleDescriptor(
        id=stage.name,
        transforms={transform.unique_name: transform for transform in stage.transforms},
        pcollections=dict(components.pcollections.items()),
        coders=dict(components.coders.items()),
        windowing_strategies=dict(components.windowing_strategies.items()),
        environments=dict(components.environments.items()),
    )
    ((read, source),) = reads
    return FusedStage(stage.name, descriptor.SerializeToString(), read, source, tuple(writes))
