"""Listing, looking at and deleting what this installation has on Alibaba Cloud, in as few calls as there can be."""

import asyncio
import contextlib
from collections.abc import Awaitable, Mapping, Sequence
from typing import Any

from springtide.drivers import alibaba_eci, alibaba_ecs
from springtide.drivers.alibaba_calls import AlibabaCalls
from springtide.drivers.alibaba_errors import NotThere, TokenUsed
from springtide.drivers.alibaba_nodes import NodeTable
from springtide.drivers.alibaba_settings import AlibabaSettings
from springtide.errors import CloudError, CloudThrottled, CloudUnavailable
from springtide.model import Node
from springtide.ports import Clock

LIST_AGE_MAX_S = 120.0
"""For how long a list is good enough while listing is throttled, and for an order that may have been sent before."""

PAGES_MAX = 2_000
"""Pages of one list; 50 machines a page."""

ID_PREFIX = "i-"
"""What the id of an ECS instance begins with."""


class AlibabaFleet:
    """Keeps a NodeTable up to date."""

    def __init__(self, calls: AlibabaCalls, table: NodeTable, settings: AlibabaSettings, clock: Clock) -> None:
        """Nothing has been listed."""
        self._calls = calls
        self._table = table
        self._settings = settings
        self._clock = clock
        self._listed_ms: int | None = None
        self._looking = asyncio.Lock()

    async def refresh(self) -> None:
        """List what carries the tag and look at what may have changed, each when it is time. Raises CloudError."""
        async with self._looking:
            await self._list_after(self._settings.list_s)
            await self._look(self._table.due(self._clock.now_ms()))
            self._table.settle(self._clock.now_ms())

    async def list_before(self) -> None:
        """Know what there is before an order is sent that another process may have sent already.

        The cloud answers a repetition with the machines of the first time; only a list tells which of them are left.
        """
        async with self._looking:
            await self._list_after(LIST_AGE_MAX_S)
            unknown = [name for name in self._table.due(self._clock.now_ms()) if name not in self._table.nodes]
            await self._look(unknown)

    def not_gone(self, ids: Sequence[str]) -> Sequence[str]:
        """Of one batch's machines, those that exist: all of them, unless some were listed before it was sent."""
        listed = [name for name in ids if name in self._table.nodes]
        return listed or ids

    async def ours(self, node_ids: Sequence[str]) -> list[str]:
        """Of these ids, those that are machines of this installation; unknown ones are asked for."""
        names = list(dict.fromkeys(node_ids))
        unknown = [name for name in names if name not in self._table.nodes]
        await self._look([name for name in unknown if name.startswith((ID_PREFIX, alibaba_eci.ID_PREFIX))])
        return [name for name in names if name in self._table.nodes]

    async def delete_instances(self, page: Sequence[str]) -> None:
        """Give up to 100 machines back. Raises CloudError."""
        try:
            await self._delete(page)
        except NotThere:
            # All or nothing: one that is gone keeps the others. Find out which are left, once.
            answer = await self._calls.ecs("DescribeInstances", alibaba_ecs.describe_instances(page))
            left = [str(each["InstanceId"]) for each in alibaba_ecs.instances(answer)]
            if left:
                await self._delete(left)
        self._table.end(page, self._clock.now_ms())

    async def _delete(self, page: Sequence[str]) -> None:
        await self._calls.ecs("DeleteInstances", {"InstanceId": list(page), "Force": True})

    async def delete_group(self, name: str) -> None:
        """Give a container group back. Raises CloudError."""
        with contextlib.suppress(NotThere):
            await self._calls.eci("DeleteContainerGroup", {"ContainerGroupId": name})
        self._table.end([name], self._clock.now_ms())

    async def create_group(self, query: Mapping[str, Any]) -> str:
        """The id of the group that is created, or was by the same order; "": it was, and is gone. Raises CloudError."""
        try:
            answer = await self._calls.eci("CreateContainerGroup", query)
        except TokenUsed:
            # A repetition names a later end, as a span from now on: the cloud takes that for another order.
            return await self._created_before(query)
        return str(answer.get("ContainerGroupId") or "")

    async def _created_before(self, query: Mapping[str, Any]) -> str:
        name = query["ContainerGroupName"]
        found = await self._calls.eci("DescribeContainerGroups", {"ContainerGroupName": name})
        wanted = {tag["Key"]: tag["Value"] for tag in query["Tag"]}
        for group in found.get("ContainerGroups") or []:
            tagged = alibaba_ecs.tag_values(group.get("Tags") or [], "Key", "Value")
            if all(tagged.get(key) == value for key, value in wanted.items()):
                return str(group["ContainerGroupId"])
        return ""

    async def _list_after(self, age_s: float) -> None:
        """List, unless it was done less than `age_s` ago."""
        now_ms = self._clock.now_ms()
        if self._listed_ms is not None and now_ms - self._listed_ms < age_s * 1000:
            return
        try:
            ids = await self._list_instances()
            groups = await self._list_groups() if self._settings.eci else {}
        except CloudThrottled:
            if self._listed_ms is None or now_ms - self._listed_ms > LIST_AGE_MAX_S * 1000:
                raise
            return
        self._listed_ms = now_ms
        self._table.list_all([*ids, *groups], now_ms)
        self._table.look(list(groups), groups, now_ms)

    async def _list_instances(self) -> list[str]:
        ids: dict[str, None] = {}
        query: dict[str, Any] = {"ResourceType": "instance", "Tag": alibaba_ecs.own_tag(self._settings)}
        for _ in range(PAGES_MAX):
            answer = await self._calls.ecs("ListTagResources", query)
            for each in (answer.get("TagResources") or {}).get("TagResource") or []:
                ids[each["ResourceId"]] = None
            if not answer.get("NextToken"):
                return list(ids)
            query["NextToken"] = answer["NextToken"]
        raise CloudUnavailable(f"there are more than {PAGES_MAX} pages of tagged machines; split the installation")

    async def _list_groups(self) -> dict[str, Node]:
        groups: dict[str, Node] = {}
        query: dict[str, Any] = {"Limit": alibaba_eci.PAGE_MAX, "Tag": alibaba_ecs.own_tag(self._settings)}
        for _ in range(PAGES_MAX):
            answer = await self._calls.eci("DescribeContainerGroups", query)
            groups |= self._groups_in(answer)
            if not answer.get("NextToken"):
                return groups
            query["NextToken"] = answer["NextToken"]
        raise CloudUnavailable(f"there are more than {PAGES_MAX} pages of container groups; split the installation")

    def _groups_in(self, answer: Mapping[str, Any]) -> dict[str, Node]:
        now_ms = self._clock.now_ms()
        found = (alibaba_eci.node_of(self._settings, group, now_ms) for group in answer.get("ContainerGroups") or [])
        return {node.node_id: node for node in found if node is not None}

    async def _look(self, names: Sequence[str]) -> None:
        """Ask about these, by as many a call as it takes."""
        machines = [name for name in names if not name.startswith(alibaba_eci.ID_PREFIX)]
        groups = [name for name in names if name.startswith(alibaba_eci.ID_PREFIX)]

        async def machines_of(page: Sequence[str]) -> None:
            answer = await self._calls.ecs("DescribeInstances", alibaba_ecs.describe_instances(page))
            now_ms = self._clock.now_ms()
            found = [alibaba_ecs.node_of(self._settings, each, now_ms) for each in alibaba_ecs.instances(answer)]
            self._table.look(page, {node.node_id: node for node in found if node is not None}, now_ms)

        async def groups_of(page: Sequence[str]) -> None:
            answer = await self._calls.eci("DescribeContainerGroups", alibaba_eci.describe_groups(page))
            self._table.look(page, self._groups_in(answer), self._clock.now_ms())

        jobs = [machines_of(page) for page in alibaba_ecs.pages(machines)]
        jobs += [groups_of(page) for page in alibaba_ecs.pages(groups, alibaba_eci.PAGE_MAX)]
        await gather(jobs, self._settings.batches_at_once)


async def gather(jobs: Sequence[Awaitable[None]], at_once: int) -> None:
    """Do all of them, a few at once; then raise the first CloudError that there was."""
    turn = asyncio.Semaphore(at_once)
    failures: list[CloudError] = []

    async def do(job: Awaitable[None]) -> None:
        async with turn:
            try:
                await job
            except CloudError as error:
                failures.append(error)

    await asyncio.gather(*(do(job) for job in jobs))
    if failures:
        raise failures[0]
